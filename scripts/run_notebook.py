"""Run a notebook from top to bottom on a clean kernel, under a hard memory limit, and print what it took.

    python scripts/run_notebook.py colab/leanrecon.ipynb --offline
    python scripts/run_notebook.py colab/leanrecon.ipynb --set WHAT=nsd --set ACCEPT_TERMS=True --folder work

The kernel has an environment of its own. It sees the libraries of this environment, but not leanrecon: the notebook
installs leanrecon from a wheel that is built from this source tree. ``--limit`` bounds the address space of every process
(ulimit -v). Where systemd allows it, a memory cgroup bounds all of them together. ``--offline`` cuts the network, except
loopback. Prints the limits, the seconds of every cell, and the peak anonymous memory of the kernel and its children.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLES_PER_SECOND = 20
PARAMETER = re.compile(r"^(?P<name>[A-Z_]+) = (?P<value>.*?)(?P<mark>\s*# @param.*)$")


def set_parameters(notebook, values):
    """Set the lines marked ``# @param`` to other values, ``{name: Python expression or plain text}``; unknown names are refused."""
    left = dict(values)
    for cell in notebook.cells:
        lines = cell.source.split("\n")
        for k, line in enumerate(lines):
            found = PARAMETER.match(line)
            if found and found["name"] in left:
                lines[k] = f"{found['name']} = {_expression(left.pop(found['name']))}{found['mark']}"
        cell.source = "\n".join(lines)
    if left:
        raise SystemExit(f"the notebook has no parameters {', '.join(left)}")
    return notebook


def _expression(text):
    """What a form field would write: numbers and booleans as they are, the rest as a string."""
    return text if re.fullmatch(r"-?\d+(\.\d+)?|True|False", str(text)) else json.dumps(str(text))


def build_wheel(folder):
    """Build a wheel of this source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the wheel could not be built:\n{done.stderr.strip() or done.stdout.strip()}")
    return next(folder.glob("leanrecon-*.whl"))


NEEDED = {"hatchling": "hatchling", "nbclient": "nbclient", "ipykernel": "ipykernel", "boto3": "boto3",
          "nibabel": "nibabel", "torch": "torch", "psutil": "psutil"}  # fmt: skip
"""What notebooks run with, by the name of the module: README's pip install '.[test]' brings all of them."""


def require_installed():
    """Refuse to begin where a library is missing that a notebook would only miss after minutes."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(
            f"notebooks need {', '.join(missing)}, which this Python does not have: "
            f"run pip install '.[test]' in {ROOT} first"
        )


def fresh_environment(folder):
    """Make an environment that sees the libraries of this one, but not leanrecon; returns its Python.

    The libraries are linked in a folder beside it, so that its pip does not touch them.
    """
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]  # pip is linked as well
    subprocess.run(command, check=True, capture_output=True)
    python = folder / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip()
    seen = folder.with_name(f"seen-by-{folder.name}")  # pip treats everything below its prefix as its own
    seen.mkdir()
    for place in {sysconfig.get_path(name) for name in ("purelib", "platlib")}:
        for path in Path(place).iterdir():
            if "leanrecon" not in path.name and path.suffix != ".pth" and not (seen / path.name).exists():
                (seen / path.name).symlink_to(path)
    (Path(own) / "seen.pth").write_text(f"{seen}\n")
    return python


# Limits


def network_cut():
    """The prefix of a command that runs without a network; empty where the system does not allow it."""
    for command in (["unshare", "--net", "--map-root-user"], ["unshare", "--net"]):
        if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode:
            return command
    return []


def cgroup(limit):
    """The prefix of a command that runs in a memory cgroup of its own; empty where there can be none."""
    if not Path("/run/systemd/system").exists() or not shutil.which("systemd-run"):
        return []
    command = ["systemd-run", *([] if os.geteuid() == 0 else ["--user"]), "--scope", "--quiet"]
    command += ["-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0"]
    return [] if subprocess.run([*command, "true"], capture_output=True).returncode else command


def raise_loopback():
    """Bring up the loopback interface of a new network namespace, which the kernel's sockets need."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running


class TreeMemory:
    """The peak anonymous memory of all descendants of a process together, and of the largest one."""

    def __init__(self, process):
        self.process = process
        self.together = self.largest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _sample(self):
        import psutil

        from leanrecon.memory import process_memory

        while not self._done.wait(1 / SAMPLES_PER_SECOND):
            held = []
            try:
                for child in psutil.Process(self.process).children(recursive=True):
                    held.append(process_memory(child.pid))
            except psutil.NoSuchProcess:
                continue
            self.together = max(self.together, sum(held))
            self.largest = max([self.largest, *held])


# The notebook


def execute(given):
    """Run the notebook in this environment; the executed notebook is saved even if it fails."""
    import resource

    import nbformat
    from nbclient import NotebookClient

    if given.offline:
        raise_loopback()
    resource.setrlimit(resource.RLIMIT_AS, (given.limit_bytes, given.limit_bytes))
    notebook = nbformat.read(given.notebook, as_version=4)
    set_parameters(notebook, dict(one.split("=", 1) for one in given.set))
    started = {}

    def begin(cell, cell_index):
        started[cell_index] = time.monotonic()

    def end(cell, cell_index, execute_reply):
        first = next((line for line in cell.source.split("\n") if line.strip()), "")
        seconds = time.monotonic() - started[cell_index]
        print(f"  {seconds:6.1f} s  {first[:90]}", flush=True)

    client = NotebookClient(
        notebook, timeout=given.timeout, kernel_name="python3", resources={"metadata": {"path": str(given.folder)}},
        on_cell_execute=begin, on_cell_executed=end,
    )  # fmt: skip
    try:
        client.execute()
    finally:
        nbformat.write(notebook, given.out)


def run(given):
    """Make an environment, run the notebook there in a process of its own, and print what it took."""
    require_installed()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        python = fresh_environment(place / "environment")
        if not any(one.startswith("LEANRECON_SOURCE=") for one in given.set):
            given.set.append(f"LEANRECON_SOURCE={build_wheel(place / 'wheel')}")
        cut, held = network_cut() if given.offline else [], cgroup(given.limit_bytes)
        print(f"limit: {given.limit} of address space for every process (ulimit -v)")
        print(f"memory cgroup: {given.limit} for all together" if held else "memory cgroup: this machine allows none")
        if given.offline:
            print(
                "network: cut off" if cut else "network: can't be cut off here; pip is told to do without", flush=True
            )
        command = [*held, *cut, str(python), __file__, str(given.notebook), "--inside", "--folder", str(given.folder)]
        command += ["--out", str(given.out), "--limit", given.limit, "--timeout", str(given.timeout)]
        command += ["--offline"] if cut else []
        command += [word for one in given.set for word in ("--set", one)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"PIP_NO_INDEX": "1"} if given.offline else {}
        environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "JUPYTER_PATH": str(place / "none")}
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment)
        with TreeMemory(process.pid) as memory:
            code = process.wait()
        print(f"{'done' if not code else 'FAILED'} in {time.monotonic() - began:.0f} s")
        print(
            f"peak memory: {memory.together / 1e9:.2f} GB together, {memory.largest / 1e9:.2f} GB the largest process"
        )
        print(f"executed notebook: {given.out}")
        return code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a form field"
    )
    parser.add_argument("--folder", type=Path, help="where it runs; by default a folder that is removed afterwards")
    parser.add_argument("--out", type=Path, help="the executed notebook; by default executed.ipynb in the folder")
    parser.add_argument("--limit", default="12GB")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds that one cell may take")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    number, unit = re.fullmatch(r"([\d.]+)\s*([KMGT]?B)", given.limit, re.IGNORECASE).groups()
    given.limit_bytes = int(float(number) * 1000 ** " KMGT".index(unit[0].upper().replace("B", " ")))
    given.notebook = given.notebook.absolute()
    with tempfile.TemporaryDirectory() as temporary:
        given.folder = (given.folder or Path(temporary)).absolute()
        given.folder.mkdir(parents=True, exist_ok=True)
        given.out = (given.out or given.folder / "executed.ipynb").absolute()
        return execute(given) if given.inside else run(given)


if __name__ == "__main__":
    sys.exit(main())
