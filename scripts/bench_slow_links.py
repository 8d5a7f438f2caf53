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
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import bench_nsd_fetch
import numpy as np
from bench_nsd_fetch import IMAGES, SHAPE, SIDE, VOXELS, mask

RATES = (50.0, 500.0)  # Mbit/s
LATENCIES = (30.0, 100.0, 200.0)  # ms a round trip
SHOWN = 266  # images that a session shows
FIRST_WINDOW, LARGEST_WINDOW = 14_600, 4 * 2**20  # bytes in flight of a connection
IDLE = 0.2  # seconds beyond a round trip after which a connection begins anew (RFC 6298's least, as Linux has it)
PIECE = 64 * 1024
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

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.free = 0.0
        self.lock = threading.Lock()

    def carry(self, nbytes: int) -> None:
        with self.lock:
            begin = max(self.free, time.monotonic() - LATE)
            self.free = begin + nbytes / self.rate
        time.sleep(max(self.free - time.monotonic(), 0))


class Server(bench_nsd_fetch.Server):
    """HEAD and GET of objects with ranges and If-Match; every session is the first one's file."""

    wbufsize = 0
    link = Link(1.0)
    open_now = most_open = requests = nbytes = 0
    lock = threading.Lock()

    def setup(self) -> None:
        super().setup()
        self.window, self.last = 0, 0.0
        with self.lock:
            Server.open_now += 1
            Server.most_open = max(Server.most_open, Server.open_now)

    def finish(self) -> None:
        with self.lock:
            Server.open_now -= 1
        super().finish()

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.last = time.monotonic()

    def _head(self, status: int, length: int, *headers: tuple[str, str]) -> None:
        with self.lock:
            Server.requests += 1
            Server.nbytes += length if self.command == "GET" else 0
        self.link.carry(HEADERS)
        super()._head(status, length, *headers)

    def _arrive(self) -> None:
        time.sleep(self.latency * (1 if self.window else 2))
        if not self.window or time.monotonic() - self.last > self.latency + IDLE:
            self.window = FIRST_WINDOW

    def _send(self, path: Path, start: int, stop: int) -> None:
        """Send a window a round trip, and twice as much in the next."""
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop:
                began, until = time.monotonic(), min(start + self.window, stop)
                while start < until:
                    piece = file.read(min(PIECE, until - start))
                    self.link.carry(len(piece))
                    self.wfile.write(piece)
                    start += len(piece)
                if start < stop:
                    time.sleep(max(began + self.latency - time.monotonic(), 0))
                    self.window = min(2 * self.window, LARGEST_WINDOW)


def serve(root: Path, rate: float, latency: float) -> None:
    """Serve until standard input ends; then print requests, bytes, and how many connections were open at most."""
    Server.root, Server.latency, Server.link = root, latency / 1e3, Link(rate * 1e6 / 8)

    class Listening(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

        def handle_error(self, *_: object) -> None:
            return  # a client that has gone

    server = Listening(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    found = {"open": Server.most_open, "requests": Server.requests, "nbytes": Server.nbytes}
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
