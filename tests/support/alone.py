"""Tests in a process of their own: what earlier tests left in the heap would count as memory that a test takes."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

import pytest

INSIDE = "LEANRECON_TEST_ALONE"
"""Set in that process, where a test runs as any other."""


def set_apart(items: Sequence[pytest.Item]) -> None:
    """Make each of these tests run itself in a fresh pytest, with its fixtures there alone."""
    if INSIDE not in os.environ:
        for item in items:
            item.fixturenames = []  # type: ignore[attr-defined]
            item.runtest = partial(_in_a_process, item)  # type: ignore[method-assign]


def _in_a_process(item: pytest.Item) -> None:
    command = [sys.executable, "-m", "pytest", item.nodeid, "-m", "", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with tempfile.TemporaryDirectory() as scratch:
        ran = subprocess.run(
            [*command, f"--basetemp={scratch}/files"],
            cwd=item.config.rootpath,
            env=os.environ | {INSIDE: "1"},
            capture_output=True,
            text=True,
        )
    told = ran.stdout + ran.stderr
    if ran.returncode:
        pytest.fail(told, pytrace=False)
    if skipped := re.search(r"^SKIPPED .*?: (.*)$", told, re.MULTILINE):
        pytest.skip(skipped[1])
    assert re.search(r"^1 passed", told, re.MULTILINE), told
