import gc
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon import memory
from leanrecon.errors import BudgetError, SettingsError
from leanrecon.memory import (
    MemoryBudget,
    PeakMemory,
    available_memory,
    buffer,
    cgroup_free,
    format_bytes,
    give_back,
    parse_bytes,
    peak_resident,
    process_memory,
)

MB = 1_000_000


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GB", 4 * 10**9),
        ("4G", 4 * 10**9),
        ("4GiB", 4 * 2**30),
        ("4gib", 4 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("512 MB", 512 * 10**6),
        ("16KB", 16_000),
        ("16kB", 16_000),
        ("16KiB", 16_384),
        ("1.5TB", 15 * 10**11),
        ("0.5TiB", 2**39),
        (".5k", 500),
        (" 12 ", 12),
        ("12B", 12),
        (12, 12),
        ("0", 0),
    ],
)
def test_sizes_in_words(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "4XB", "4 G B", "-4GB", "4,5GB", "1e9", "4GBs", "4..5GB", "lots", "٤GB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(SettingsError) as error:
        parse_bytes(text)
    assert (
        str(error.value) == f'{text!r} is not a size in bytes. Expected a number and a unit, as in "4GB" or "512MiB".'
    )


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1240, "1.24 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (12_345_678, "12.3 MB"),
        (1_236_000_000, "1.24 GB"),
        (2_500_000_000_000, "2.5 TB"),
        (-1_500_000, "-1.5 MB"),
    ],
)
def test_sizes_are_written_with_three_digits(nbytes, text):
    assert format_bytes(nbytes) == text


@given(st.integers(0, 10**14))
def test_a_written_size_is_read_as_nearly_the_same(nbytes):
    assert parse_bytes(format_bytes(nbytes)) == pytest.approx(nbytes, rel=0.005, abs=0.5)


# What a process holds


@pytest.mark.parametrize("shape", [(100, 7), (3,), (0, 5), (), (1000, 1000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_buffer_is_zeroed_page_aligned_and_writable(shape, dtype):
    array = buffer(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.ctypes.data % 4096 == 0
    assert not array.any()
    array[...] = 1
    assert array.all()


@pytest.mark.alone
def test_a_buffer_is_given_back_when_it_is_dropped():
    before = process_memory()
    array = buffer((100 * MB,), np.uint8)
    array[:] = 1
    assert process_memory() - before == pytest.approx(100 * MB, rel=0.05)
    half = array[: 50 * MB].reshape(-1, 10)
    del array
    assert process_memory() - before > 90 * MB, "a view holds all of it"
    del half
    gc.collect()
    assert process_memory() - before < 5 * MB


def test_untouched_memory_does_not_count():
    before = process_memory()
    array = buffer((500 * MB,), np.uint8)
    assert process_memory() - before < 20 * MB
    del array


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_process_memory_is_the_anonymous_part_of_the_resident_set(tmp_path):
    file = tmp_path / "mapped"
    file.write_bytes(bytes(50 * MB))
    mapped = np.memmap(file, np.uint8, "r")
    before = process_memory()
    assert mapped.sum() == 0  # every page read
    assert process_memory() - before < 5 * MB, "mapped files can be dropped by the kernel"
    status = Path("/proc/self/status").read_text()
    anonymous = int(status.partition("RssAnon:")[2].split()[0]) * 1024
    assert process_memory() == pytest.approx(anonymous, rel=0.02)


def test_without_proc_the_whole_resident_set_counts(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(FileNotFoundError))
    assert process_memory() == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert peak_resident() is None


PEAK = """
import sys
import time
import numpy as np
from leanrecon.memory import PeakMemory, buffer, process_memory
with PeakMemory() as small:
    pass
before = process_memory()
with PeakMemory() as measured:
    block = np.ones(200_000_000, np.uint8) if sys.argv[1] == "numpy" else buffer((200_000_000,), np.uint8)
    block[:] = 1
    time.sleep(0.06)  # three samples
    del block
with PeakMemory() as after:
    pass
print(small.peak, before, measured.peak, after.peak, measured.resident, after.resident)
"""


@pytest.mark.parametrize("kind", ["numpy", "buffer"])
def test_a_peak_of_200_megabytes_is_seen_within_5_percent(kind):
    run = subprocess.run([sys.executable, "-c", PEAK, kind], check=True, capture_output=True, text=True)
    small, before, peak, after, resident, later = map(int, run.stdout.split())
    assert peak - before == pytest.approx(200 * MB, rel=0.05)
    assert small < 100 * MB, "what came later does not count"
    assert after < 100 * MB, "what went before does not count"
    assert peak <= resident == later, "VmHWM never falls"


@pytest.mark.alone
def test_a_short_peak_is_seen():
    with PeakMemory() as measured:
        block = buffer((80 * MB,), np.uint8)
        block[:] = 1
        time.sleep(0.06)  # three samples
        del block
    assert measured.peak - process_memory() > 70 * MB


def test_measuring_ends_with_an_error_and_lets_it_pass():
    measured = PeakMemory()
    with pytest.raises(KeyError), measured:
        raise KeyError
    assert not measured._sampler.is_alive()
    assert measured.peak > 0


# Budgets


def test_a_budget_is_for_the_whole_process():
    held = process_memory()
    budget = MemoryBudget.of("4GB")
    assert budget.allowed == 4 * 10**9
    assert budget.reserved == pytest.approx(held, rel=0.05)
    assert budget.free == budget.allowed - budget.reserved
    assert MemoryBudget.of(4 * 10**9).allowed == 4 * 10**9


def test_without_a_number_most_of_the_free_memory_is_allowed(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000 * MB)
    budget = MemoryBudget.of(None)
    assert budget.free == 800 * MB
    assert budget.allowed == budget.reserved + 800 * MB


def test_a_budget_taken_again_looks_at_what_is_held_now():
    first = MemoryBudget.of("4GB")
    block = buffer((50 * MB,), np.uint8)
    block[:] = 1
    again = MemoryBudget.of(first)
    assert again.allowed == first.allowed
    assert again.reserved - first.reserved == pytest.approx(50 * MB, rel=0.1)


def test_what_fits_is_projected():
    budget = MemoryBudget(allowed=500 * MB, reserved=100 * MB)
    assert budget.require("ridge", 400 * MB) == 500 * MB
    assert budget.require("ridge", 50 * MB) == 150 * MB


def test_what_does_not_fit_is_refused_with_all_numbers_and_what_would_do():
    budget = MemoryBudget(allowed=500 * MB, reserved=100 * MB)
    with pytest.raises(BudgetError) as error:
        budget.require("features pca", 400 * MB + 1)
    assert str(error.value) == (
        "features pca needs at least 500 MB (100 MB held already and 400 MB of work), more than the 500 MB allowed. "
        'Raise the budget to "506MB" or more (setting `memory`, option --memory).'
    )
    assert MemoryBudget(allowed=parse_bytes("506MB"), reserved=105 * MB).require("features pca", 400 * MB + 1)


def test_a_process_that_holds_more_than_is_allowed_has_nothing_free():
    budget = MemoryBudget(allowed=100 * MB, reserved=200 * MB)
    assert budget.free == 0
    with pytest.raises(BudgetError):
        budget.require("anything", 0)


# Cgroups


def version_2(root: Path, limit: str, usage: int, cache: int = 0) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{usage}\n")
    (root / "memory.stat").write_text(f"anon 5\ninactive_anon 3\ninactive_file {cache}\nactive_file 7\n")


def version_1(root: Path, limit: int, usage: int, cache: int = 0) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (root / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (root / "memory.stat").write_text(f"cache 9\ninactive_file 1\ntotal_inactive_file {cache}\n")


@pytest.fixture
def cgroups(tmp_path):
    membership = tmp_path / "cgroup"

    def free(lines: str) -> list[int]:
        membership.write_text(lines)
        return list(cgroup_free(tmp_path / "fs", membership))

    return free


def test_a_container_sees_its_own_limit(tmp_path, cgroups):
    version_2(tmp_path / "fs", str(4000 * MB), 1500 * MB)
    assert cgroups("0::/\n") == [2500 * MB]


def test_pages_of_files_that_were_read_do_not_count_as_used(tmp_path, cgroups):
    version_2(tmp_path / "fs", str(4000 * MB), 3900 * MB, cache=3000 * MB)
    assert cgroups("0::/\n") == [3100 * MB]


def test_every_group_above_counts(tmp_path, cgroups):
    """As under SLURM or systemd, where the job's limit lies above the group of the step."""
    version_2(tmp_path / "fs" / "slurm" / "job_7" / "step_0", "max", 500 * MB)
    version_2(tmp_path / "fs" / "slurm" / "job_7", str(2000 * MB), 500 * MB)
    version_2(tmp_path / "fs" / "slurm", str(9000 * MB), 4000 * MB)
    assert cgroups("0::/slurm/job_7/step_0\n") == [1500 * MB, 5000 * MB]


def test_a_path_of_the_host_falls_back_to_what_the_container_sees(tmp_path, cgroups):
    version_2(tmp_path / "fs", str(1000 * MB), 200 * MB)
    assert cgroups("0::/docker/0123abcd\n") == [800 * MB]


def test_version_1_groups(tmp_path, cgroups):
    version_1(tmp_path / "fs" / "memory" / "job", 1000 * MB, 600 * MB, cache=100 * MB)
    version_1(tmp_path / "fs" / "memory", 2**63 - 4096, 600 * MB)
    version_1(tmp_path / "fs" / "cpu" / "job", 1, 1)
    assert min(cgroups("5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")) == 500 * MB


def test_a_group_over_its_limit_leaves_nothing(tmp_path, cgroups):
    version_2(tmp_path / "fs", str(100 * MB), 120 * MB)
    assert cgroups("0::/\n") == [0]


def test_without_groups_the_machine_alone_counts(tmp_path, cgroups, monkeypatch):
    assert list(cgroup_free(tmp_path, tmp_path / "nothing")) == []
    assert cgroups("0::/\n") == []
    monkeypatch.setattr(memory, "cgroup_free", lambda: iter([]))
    assert available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.1)
    monkeypatch.setattr(memory, "cgroup_free", lambda: iter([7, 5]))
    assert available_memory() == 5


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="other systems' heaps have no such call")
def test_what_was_freed_in_the_heap_is_given_back():
    blocks = [bytes(1000) for _ in range(60_000)]
    last = blocks.pop()  # at the top of the heap: nothing below it is given back by itself
    held = process_memory()
    blocks.clear()
    give_back()
    assert process_memory() < held - 40_000_000
    assert last == bytes(1000)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' heaps have no such call")
def test_the_heap_keeps_what_was_freed_until_it_is_given_back():
    script = """
import ctypes, resource
from leanrecon.memory import give_back, keep_freed
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(6_000_000) for _ in range(4)]
    for block in blocks:
        libc.memset(block, 1, 6_000_000)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
fresh = faults()
keep_freed()
faults()
kept = faults()
give_back()
print(fresh, kept, faults())
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    fresh, kept, given_back = map(int, out.split())
    assert kept < 100 < min(fresh, given_back)
