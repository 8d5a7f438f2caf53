"""What all tests share: one thread for small matrices, and no import of test files that would not be run."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import threadpoolctl
from support.alone import set_apart

# Two threads wait for each other longer than these matrices take. Plugins of pytest have loaded NumPy already.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
THREADS = int(os.environ["OMP_NUM_THREADS"])
threadpoolctl.threadpool_limits(THREADS)

# How long an example takes says more of a busy machine than of what it tries.
hypothesis.settings.register_profile("leanrecon", deadline=None)
hypothesis.settings.load_profile("leanrecon")

_LEFT_OUT = re.compile(r"\bnot (\w+)")
_MARKS = re.compile(r"^pytestmark = (\[.*?^\]|.*?$)", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"pytest\.mark\.(\w+)")


def pytest_ignore_collect(collection_path: Path, config: Any) -> bool | None:
    """Leave out files all of whose tests are left out by their marker, before PyTorch and others are imported."""
    expression = config.getoption("markexpr", default="")
    if collection_path.suffix != ".py" or re.search(r"\bor\b|\(", expression):
        return None
    marks = _MARKS.search(collection_path.read_text(encoding="utf-8"))
    left_out = set(_LEFT_OUT.findall(expression))
    return True if marks and left_out & set(_MARK.findall(marks[1])) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of long.txt, and give those that measure memory a process of their own."""
    lines = (Path(__file__).parent / "long.txt").read_text(encoding="utf-8").splitlines()
    long = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in long or item.nodeid.partition("[")[0] in long:
            item.add_marker(pytest.mark.long)
    set_apart([item for item in items if item.get_closest_marker("alone")])


@pytest.fixture(scope="module", autouse=True)
def same_threads() -> Iterator[None]:
    """Tests leave this process as many threads of arithmetic as they found: sums of later tests depend on them."""
    yield
    assert os.environ["OMP_NUM_THREADS"] == str(THREADS)
    pools = threadpoolctl.threadpool_info()
    assert [pool for pool in pools if pool["num_threads"] != THREADS] == []
    if (torch := sys.modules.get("torch")) is not None:
        assert torch.get_num_threads() == THREADS


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server of S3 with one bucket."""
    from support import buckets

    with buckets.serving() as url:
        yield url


@pytest.fixture
def proxy(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A proxy before that server, by which leanrecon finds it: it counts requests, and makes them fail as told."""
    from support import buckets
    from support.nsd_server import proxied

    from leanrecon.places import bucket

    monkeypatch.setattr(bucket, "_sleep", lambda seconds: None)
    with proxied(s3) as found, buckets.environment(found.url, cache=tmp_path):
        yield found
