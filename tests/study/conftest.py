"""The small study of these tests, on disk and in memory."""

from pathlib import Path

import pytest
from support.memory_place import MemoryPlace
from support.small_study import write_study

from leanrecon.places import as_location
from leanrecon.study.layout import Study


@pytest.fixture(params=["local", "memory"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    return write_study(as_location(tmp_path / "study") if request.param == "local" else MemoryPlace().at("study"))
