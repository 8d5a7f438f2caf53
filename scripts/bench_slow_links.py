"""How close fetching NSD comes to what a slow, distant link can carry.

    python scripts/bench_slow_links.py [--folder DIR] [--rate 50 500] [--latency 30 100 200] [--against TREE]

A server on loopback imitates the link: all connections share its rate, every request waits for one round trip, a new
connection for another, and each connection begins as TCP does, with 14 KB in its first round trip and twice as many in
every further one (RFC 6928), again after it was idle. Packets are never lost. Each session has subject 1's true geometry
(81x104x83 voxels, 699,192 chunks of 1,500 bytes, 15,724 of them wanted) and shows 266 images of 425 pixels that no other
shows, as subject 1 saw 9,841 in 37 sessions.

Prints the seconds of the stage dataset over the time that the wanted voxels' and images' bytes alone take at the link's
rate, and over the time of all bytes that came. ``--against`` measures another checkout's leanrecon before each line of this one.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from bench_nsd_fetch import BUCKET, IMAGES, SHAPE, SIDE, VOXELS, mask

RATES = (50.0, 500.0)  # Mbit/s
LATENCIES = (30.0, 100.0, 200.0)  # ms a round trip
SHOWN = 266  # images that a session shows
FIRST_WINDOW, LARGEST_WINDOW = 14_600, 4 * 2**20  # bytes in flight of a connection
IDLE = 0.2  # seconds beyond a round trip after which a connection begins anew (RFC 6298's least, as Linux has it)
TURN, SMALLEST, LARGEST = (
    0.002,
    16 * 1024,
    128 * 1024,
)  # seconds of the link, and bytes, that a connection takes in turn
MORE = getattr(socket, "MSG_MORE", 0)
LATE = 0.1  # seconds that the link may catch up on, as this process doesn't always run when it should
HEADERS = 600  # bytes of an answer beside its body


def build(root: Path) -> None:
    """Write one session, masks, the design and a file of images with holes, unless they are there."""
    import h5py

    from leanrecon.datasets.nsd import simulate
    from leanrecon.datasets.nsd.layout import BETAS_KEY, DESIGN, STIMULI, STIMULI_KEY, TRIALS, SubjectFiles

    if (root / "built").exists():
        return
    names = SubjectFiles(1)
    order, images = simulate.draw_design(0)
    shown = np.arange(37)[:, None] * SHOWN + np.arange(TRIALS) % SHOWN
    order[: shown.size] = shown.ravel() * 3001 % 10_000 + 1  # one in ten is of those that all subjects saw
    for name in (DESIGN, STIMULI, names.roi("nsdgeneral"), names.betas(1, "hdf5")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    simulate._save_design(root / DESIGN, order, images)
    simulate._save_volume(root / names.roi("nsdgeneral"), mask().astype(np.int16))
    simulate._save_volume(root / names.ncsnr, np.ones(SHAPE, np.float32))
    rng = np.random.default_rng(0)
    trials = [rng.integers(-900, 900, TRIALS, np.int16).tobytes() for _ in range(1009)]
    x, y, z = SHAPE
    with h5py.File(root / names.betas(1, "hdf5"), "w", libver="earliest") as file:
        betas = file.create_dataset(BETAS_KEY, (TRIALS, z, y, x), "<i2", chunks=(TRIALS, 1, 1, 1))
        for n, (k, j, i) in enumerate(np.ndindex(z, y, x)):  # in the order of MATLAB's own arrays
            betas.id.write_direct_chunk((0, k, j, i), trials[n % len(trials)])
    with h5py.File(root / STIMULI, "w", libver="earliest") as file:
        file.create_dataset(STIMULI_KEY, (IMAGES, SIDE, SIDE, 3), np.uint8)[-1] = 1
    (root / "built").touch()


class Link:
    """What all connections share: so many bytes a second, in the order in which they are sent."""

    def __init__(self, rate: float, latency: float) -> None:
        self.rate, self.latency = rate, latency
        self.piece = int(min(max(rate * TURN, SMALLEST), LARGEST))
        self.free = 0.0
        self.lock = threading.Lock()
        self.open_now = self.most_open = self.requests = self.nbytes = 0

    def carry(self, nbytes: int) -> None:
        with self.lock:
            begin = max(self.free, time.monotonic() - LATE)
            self.free = until = begin + nbytes / self.rate
        time.sleep(max(until - time.monotonic(), 0))


class Served:
    """HEAD and GET of objects with ranges and If-Match; every session is the first one's file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, tuple[int, int]] = {}

    def open(self, name: str) -> tuple[int, int] | None:
        """Descriptor and size of an object; None where there is none."""
        if name not in self.files:
            path = self.root / re.sub(r"betas_session\d\d", "betas_session01", name)
            if not path.is_file():
                return None
            self.files[name] = os.open(path, os.O_RDONLY), path.stat().st_size
        return self.files[name]

    def answer(self, request: str) -> tuple[str, int, int, int]:
        """The headers of an answer, and the descriptor, start and stop of its body."""
        method, target, *_ = request.split(" ", 2)
        found = self.open(target.partition("?")[0].removeprefix(f"/{BUCKET}/"))
        if found is None:
            return _headers("404 Not Found", 0), 0, 0, 0
        file, size = found
        tag = f'"{size:032x}"'
        asked = {name.lower(): value for name, value in re.findall(r"\r\n([\w-]+): ([^\r]*)", request)}
        if asked.get("if-match", tag) != tag:
            return _headers("412 Precondition Failed", 0), 0, 0, 0
        start, stop, status, more = 0, size, "200 OK", [f"ETag: {tag}"]
        if bounds := re.fullmatch(r"bytes=(\d+)-(\d+)", asked.get("range", "")):
            start, stop, status = int(bounds[1]), min(int(bounds[2]) + 1, size), "206 Partial Content"
            more.append(f"Content-Range: bytes {start}-{stop - 1}/{size}")
        return _headers(status, stop - start, *more), file, start, stop if method == "GET" else start


def _headers(status: str, length: int, *more: str) -> str:
    date = "Date: Mon, 30 Nov 2026 12:00:00 GMT"
    return "\r\n".join([f"HTTP/1.1 {status}", "Server: bench", date, *more, f"Content-Length: {length}", "\r\n"])


def converse(link: Link, served: Served, sock: socket.socket) -> None:
    """Answer what comes through one connection: a window a round trip, and twice as much in the next."""
    window, last, begun = 0, 0.0, b""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        while b"\r\n\r\n" not in begun:
            data = sock.recv(64 * 1024)
            if not data:
                return
            begun += data
        request, _, begun = begun.partition(b"\r\n\r\n")
        idle = time.monotonic() - last
        time.sleep(link.latency * (1 if window else 2))
        if not window or idle > link.latency + IDLE:
            window = FIRST_WINDOW
        head, file, start, stop = served.answer(request.decode("latin-1"))
        with link.lock:
            link.requests += 1
            link.nbytes += stop - start
        unsent = head.encode()
        while unsent or start < stop:
            began, until = time.monotonic(), min(start + window, stop)
            while unsent or start < until:
                n = min(link.piece, until - start)
                link.carry(n + (HEADERS if unsent else 0))
                if unsent:
                    sock.sendall(unsent, MORE if n else 0)
                    unsent = b""
                while n:
                    done = os.sendfile(sock.fileno(), file, start, n)
                    start, n = start + done, n - done
            if start < stop:
                time.sleep(max(began + link.latency - time.monotonic(), 0))
                window = min(2 * window, LARGEST_WINDOW)
        last = time.monotonic()


def serve(root: Path, rate: float, latency: float) -> None:
    """Serve until standard input ends; then print requests, bytes, and how many connections were open at most."""
    link, served = Link(rate * 1e6 / 8, latency / 1e3), Served(root)

    def connected(sock: socket.socket) -> None:
        with link.lock:
            link.open_now += 1
            link.most_open = max(link.most_open, link.open_now)
        with contextlib.suppress(OSError), sock:  # a client that has gone
            converse(link, served, sock)
        with link.lock:
            link.open_now -= 1

    def accept(listening: socket.socket) -> None:
        while True:
            threading.Thread(target=connected, args=(listening.accept()[0],), daemon=True).start()

    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    threading.Thread(target=accept, args=(listening,), daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    sys.stdin.read()
    found = {"open": link.most_open, "requests": link.requests, "nbytes": link.nbytes}
    print(json.dumps(found | {"server": time.process_time()}), flush=True)


def fetch(folder: Path, port: int, sessions: int) -> None:
    """Fetch sessions and their images into a study, and print what that took as JSON."""
    import leanrecon
    from leanrecon.progress import Progress

    dataset = {"kind": "nsd", "root": "s3://natural-scenes-dataset", "endpoint_url": f"http://127.0.0.1:{port}"}
    dataset |= {"sessions": sessions, "accept_terms": True, "betas_format": "hdf5"}
    dataset |= {"check": "warn", "allow_shared_stimuli": True}  # betas are random, and most images black
    began, cpu = time.monotonic(), time.process_time()
    settings = {"dataset": dataset, "features": {"pixels": {"size": 8}}}
    leanrecon.run(settings, study=folder, memory="2GB", until="dataset", progress=Progress())
    took = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
    stage = json.loads((folder / "run.json").read_text())["stages"]["dataset"]
    print(json.dumps(took | {"planned": stage["planned_bytes"], "peak": stage["peak_bytes"]}))


def measure(root: Path, rate: float, latency: float, sessions: int, tree: str) -> dict[str, float]:
    """Fetch with the leanrecon of a checkout in a process of its own, from a server in another."""
    paths = os.pathsep.join(filter(None, (tree, os.environ.get("PYTHONPATH"))))
    me = [sys.executable, __file__, "--folder", str(root)]
    asked = ["--rate", str(rate), "--latency", str(latency), "--sessions", str(sessions)]
    server = subprocess.Popen([*me, *asked, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        shutil.rmtree(root / "study", ignore_errors=True)
        done = subprocess.run([*me, *asked, "--fetch", port], check=True, stdout=subprocess.PIPE, text=True,
                              env=os.environ | {"PYTHONPATH": paths})  # fmt: skip
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        served: dict[str, float] = json.loads(server.communicate()[0])
        return found | served
    finally:
        server.kill()
        server.wait()


def line(root: Path, rate: float, latency: float, given: argparse.Namespace, tree: str) -> str:
    """Measure one link with one checkout, and say what it took."""
    found = measure(root, rate, latency, given.sessions, tree)
    wanted = given.sessions * (VOXELS * 1500 + SHOWN * SIDE * SIDE * 3)
    ideal = wanted / (rate * 1e6 / 8)
    come = found["nbytes"] / (rate * 1e6 / 8)
    return (
        f"{found['seconds'] / ideal:.2f}x ({found['seconds'] / come:.2f}x of what came): {found['seconds']:.1f} s, "
        f"the link alone {ideal:.1f} s; {found['cpu']:.1f} s of CPU beside {found['server']:.1f} s of the server; "
        f"{found['requests']:.0f} requests, {found['nbytes'] / 1e6:.0f} MB, {found['open']:.0f} connections; "
        f"peak {found['peak'] / 1e6:.0f} MB of {found['planned'] / 1e6:.0f} MB planned"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench_links"))
    parser.add_argument("--rate", type=float, nargs="*", default=RATES, help="Mbit/s of the link")
    parser.add_argument("--latency", type=float, nargs="*", default=LATENCIES, help="milliseconds of a round trip")
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--against", metavar="TREE", help="another checkout, measured beside this one")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fetch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    root = given.folder.absolute()
    if given.serve:
        serve(root, given.rate[0], given.latency[0])
    elif given.fetch:
        fetch(root / "study", given.fetch, given.sessions)
    else:
        build(root)
        for rate in given.rate:
            for latency in given.latency:
                for name, tree in (("other", given.against), ("this", "")):
                    if tree is not None:
                        print(f"{rate:3.0f} Mbit/s, {latency:3.0f} ms, {name}: "
                              f"{line(root, rate, latency, given, tree)}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
