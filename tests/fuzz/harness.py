"""Runs leanrecon on mutated files and looks for anything but a result or a LeanreconError.

    PYTHONPATH=tests python tests/fuzz/harness.py --cases 10000 --seed 0 --jobs 2

Each case is a child of a process that has imported the libraries, so it starts in milliseconds. It fails on another
exception, a signal, more than 30 s, or memory more than 200 MB above what the child began with. The number of a
failed case and the seed make it again: ``--only NUMBER``.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.modules["fuzz.harness"] = sys.modules["__main__"]

from fuzz.mutations import mutated
from fuzz.seeds import Seed, seeds, write_base

SECONDS = 30
MEMORY = 200_000_000
"""Bytes that a case may take beyond its process: inputs are of a few kB, and their plans of a few MB."""
EXPECTED = (0, 1, 2)
"""Exit codes: done, damage found (verify), a LeanreconError."""


SHARES = {"inputs": 40, "layouts": 15, "settings": 15, "study": 20, "weights": 10}
"""Cases in a hundred of each group of seeds."""


@dataclass
class Outcome:
    """How a case ended: ``fault`` is empty where it ended well."""

    number: int
    seed: Seed
    fault: str
    seconds: float
    codes: tuple[int, ...] = ()


def leanrecon(folder: Path, *arguments: str) -> int:
    """Run a command in a child process in ``folder``; returns its exit code, or -1 on another exception."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        with open(os.devnull, "w") as silence:
            os.dup2(silence.fileno(), 1)
            os.dup2(silence.fileno(), 2)
        os._exit(_command(arguments) % 256)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _command(arguments: tuple[str, ...]) -> int:
    """Run one command in this process; exceptions other than leanrecon's pass."""
    from leanrecon.app import cli

    sys.argv = ["leanrecon", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def run_case(number: int, seed: int, all_seeds: list[Seed], root: Path) -> "Case":
    """Start a case: the mutation follows from the number and the seed alone."""
    chosen = random.Random(f"{seed}-{number}")
    (group,) = chosen.choices([*SHARES], [*SHARES.values()])
    one = chosen.choice([seed for seed in all_seeds if seed.group == group])
    folder = root / f"case{number}"
    shutil.copytree(one.folder, folder, symlinks=True)
    file = folder / one.file
    file.write_bytes(mutated(file.read_bytes(), file.suffix, chosen))
    return Case(number, one, folder)


class Case:
    """A child process that runs the commands of a seed in a folder of its own."""

    def __init__(self, number: int, seed: Seed, folder: Path) -> None:
        self.number, self.seed, self.folder = number, seed, folder
        self.log, self.result = folder.with_suffix(".log"), folder.with_suffix(".json")
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run()

    def _run(self) -> None:
        os.setsid()
        with open(self.log, "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(self.folder)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        began, fault, codes = _kilobytes("VmRSS"), "", []
        try:
            for arguments in self.seed.commands:
                codes.append(_command(arguments))
            if self.seed.call:
                _called(self.seed, self.folder)
        except BaseException:
            fault = traceback.format_exc()
        if not fault and (other := [code for code in codes if code not in EXPECTED]):
            fault = f"exit codes {other}"
        grown = (_kilobytes("VmHWM") - began) * 1024
        if not fault and grown > MEMORY:
            fault = f"held {grown / 1e6:.0f} MB more than at its start"
        self.result.write_text(json.dumps({"fault": fault, "codes": codes}))
        os._exit(0)

    def poll(self) -> Outcome | None:
        """The outcome once the child has ended; one that takes too long is killed."""
        seconds = time.monotonic() - self.started
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            if seconds < SECONDS:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return Outcome(self.number, self.seed, f"took more than {SECONDS} s", seconds)
        code = os.waitstatus_to_exitcode(status)
        if code:
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            return Outcome(self.number, self.seed, f"died of {name}", seconds)
        result = json.loads(self.result.read_text())
        return Outcome(self.number, self.seed, result["fault"], seconds, tuple(result["codes"]))

    def clean(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in (self.log, self.result):
            path.unlink(missing_ok=True)


def _called(seed: Seed, folder: Path) -> None:
    from leanrecon.errors import LeanreconError

    assert seed.call is not None
    with contextlib.suppress(LeanreconError):
        seed.call(folder / seed.file)


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run_all(numbers: Iterator[int], seed: int, jobs: int, until: float = float("inf")) -> Iterator[Outcome]:
    """Run cases, some at once, until the numbers or the time end; yields each outcome as it comes."""
    import_all()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        root = Path(temporary)
        all_seeds = seeds(root / "seeds")
        running: list[Case] = []
        while True:
            while len(running) < jobs and time.monotonic() < until and (number := next(numbers, None)) is not None:
                running.append(run_case(number, seed, all_seeds, root))
            if not running:
                return
            for case in list(running):
                if outcome := case.poll():
                    running.remove(case)
                    case.clean()
                    yield outcome
            time.sleep(0.002)


def import_all() -> None:
    """Import what cases need, once: children share it."""
    import h5py  # noqa: F401
    import scipy.io
    import scipy.linalg  # noqa: F401
    import sklearn.decomposition  # noqa: F401
    import torch  # noqa: F401
    import zarr  # noqa: F401

    import leanrecon.evaluation.report.page  # noqa: F401

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_base(Path("base"))
        os.chdir("base")
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            for arguments in (
                ("plan", "s.toml"),
                ("run", "s.toml", "--study", "st"),
                ("verify", "st"),
                ("report", "st"),
            ):
                assert _command(arguments) == 0, arguments


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, help="one case, by its number")
    given = parser.parse_args()
    torch.set_num_threads(1)  # children that run at once would wait for each other
    numbers = iter(range(given.cases) if given.only is None else [given.only])
    started, ended, faults, slowest = time.monotonic(), Counter[tuple[int, ...]](), Counter[str](), 0.0
    for outcome in run_all(numbers, given.seed, given.jobs):
        ended[outcome.codes] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.fault:
            last = outcome.fault.strip().splitlines()[-1][:160]
            faults[last] += 1
            if faults[last] == 1 or given.only is not None:
                print(f"case {outcome.number}, {outcome.seed.name}: {outcome.fault.strip()[-1500:]}\n", flush=True)
    print(
        f"seed {given.seed}: {sum(ended.values())} cases in {time.monotonic() - started:.0f} s, slowest {slowest:.1f} s"
    )
    print("exit codes of their commands:", dict(ended.most_common(12)))
    print("faults:", sum(faults.values()))
    for fault, count in faults.most_common():
        print(f"{count:6} {fault}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
