"""What fetching NSD costs at subject 1's true geometry, against an S3 server on loopback.

    python scripts/bench_nsd_fetch.py [--folder DIR] [--latency 0 30] [--all]

Writes one session of 81x104x83 voxels and 750 trials (1.05 GB as .hdf5, in MATLAB's layout, and as .nii.gz), a mask of
15,724 voxels at the back of the brain, and files of 73,000 images with holes where nothing was shown. Fetches the
session through either format, and images from a contiguous file and from one chunked by image; prints bytes, requests,
wall time and the highest memory of the fetching process. ``--all`` fetches 37 sessions and their images as well.
"""

import argparse
import http.server
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SHAPE, VOXELS = (81, 104, 83), 15_724
IMAGES, SIDE = 73_000, 425
BUCKET = "natural-scenes-dataset"
LATENCY_MS = (0, 30)
ALL = 37  # sessions


def mask() -> np.ndarray:
    """The 15,724 voxels nearest to a shell around the back of the volume."""
    x, y, z = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in SHAPE), indexing="ij")
    away = np.abs(np.sqrt((x / 0.85) ** 2 + (y / 0.95) ** 2 + ((z + 0.1) / 0.8) ** 2) - 0.85)
    away[y > -0.5] = np.inf
    chosen = np.zeros(away.size, bool)
    chosen[np.argsort(away.ravel(), kind="stable")[:VOXELS]] = True
    return chosen.reshape(SHAPE)


def build(root: Path) -> None:
    """Write the files, unless they are there."""
    import h5py

    from leanrecon.datasets.nsd import simulate
    from leanrecon.datasets.nsd.layout import DESIGN, STIMULI, STIMULI_KEY, SubjectFiles

    if (root / "built").exists():
        return
    names = SubjectFiles(1)
    order, images = simulate.draw_design(0)
    simulate._save_design(root / DESIGN, order, images)
    for name, volume in ((names.roi("nsdgeneral"), mask().astype(np.int16)), (names.ncsnr, np.ones(SHAPE, np.float32))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        simulate._save_volume(root / name, volume)
    rng = np.random.default_rng(0)
    volumes = np.empty((*SHAPE, 750), np.int16, order="F")
    for trial in range(750):
        volumes[..., trial] = rng.integers(-900, 900, SHAPE, np.int16)
    simulate._save_hdf5(root / names.betas(1, "hdf5"), volumes)
    simulate._save_nifti(root / names.betas(1, "nii.gz"), volumes)
    (root / STIMULI).parent.mkdir(parents=True, exist_ok=True)
    shape = (IMAGES, SIDE, SIDE, 3)
    shown = np.unique(images[0, order[:750] - 1] - 1)
    for name, chunks in ((STIMULI, None), (f"{STIMULI}.chunked", (1, *shape[1:]))):
        with h5py.File(root / name, "w", libver="earliest") as file:
            bricks = file.create_dataset(STIMULI_KEY, shape, np.uint8, chunks=chunks)
            for image in shown[:: 1 if chunks else 20]:
                bricks[image] = rng.integers(0, 256, shape[1:], np.uint8)
    (root / "built").touch()


class Server(http.server.BaseHTTPRequestHandler):
    """HEAD and GET of objects with ranges and If-Match; every session is the first one's file."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root = Path()
    latency = 0.0

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._arrive()
        name = self.path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        path = self.root / re.sub(r"betas_session\d\d", "betas_session01", name)
        if not path.is_file():
            return self._head(404, 0)
        size = path.stat().st_size
        tag = f'"{size:032x}"'
        if self.headers.get("If-Match", tag) != tag:
            return self._head(412, 0)
        start, stop = 0, size
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, stop = int(found[1]), min(int(found[2]) + 1, size)
            self._head(206, stop - start, ("ETag", tag), ("Content-Range", f"bytes {start}-{stop - 1}/{size}"))
        else:
            self._head(200, size, ("ETag", tag))
        if self.command == "GET":
            self._send(path, start, stop)
        return None

    def _arrive(self) -> None:
        """Wait as long as a request is under way."""
        time.sleep(self.latency)

    def _send(self, path: Path, start: int, stop: int) -> None:
        with path.open("rb") as file:
            while start < stop:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    def _head(self, status: int, length: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(length))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()


def serve(root: Path, latency_ms: float) -> None:
    Server.root, Server.latency = root, latency_ms / 1000
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


def fetch(folder: Path, port: int, what: str) -> None:
    """Fetch a session, images or all of it, and print what it took as JSON."""
    from leanrecon.context import Context
    from leanrecon.datasets.nsd import layout as nsd_layout
    from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
    from leanrecon.datasets.nsd.fetch import Fetch
    from leanrecon.datasets.nsd.files import Files, open_source, prepare
    from leanrecon.datasets.nsd.stimuli import read_images, stimuli_layout
    from leanrecon.memory import PeakMemory, process_memory
    from leanrecon.progress import PlainProgress
    from leanrecon.study.layout import Study

    settings = NSDSettings(
        endpoint_url=f"http://127.0.0.1:{port}", sessions=ALL if what == "all" else 1, accept_terms=True,
        betas_format="nii.gz" if what == "nii.gz" else "hdf5", check="warn", image_size=64 if what == "all" else None,
    )  # fmt: skip
    study = Study(folder)
    held = process_memory()
    took = {}
    with PeakMemory() as memory:
        started = time.monotonic()
        if what == "all":
            took["planned"] = NSD(settings).plan(base_dir=None, chunk=8_000_000, free=0).work
            NSD(settings).ingest(study, base_dir=None, context=Context.of(progress=PlainProgress()))
        else:
            with open_source(settings.root, settings.endpoint_url, None) as source:
                files = Files(source)
                if what in ("hdf5", "nii.gz"):
                    prepared = prepare(settings, files, None)
                    steps = Fetch(settings, study, None, Context.of())
                    store = steps._create_trials(prepared)
                    before = source.traffic.requests, source.traffic.nbytes
                    started = time.monotonic()
                    steps._fetch_trials(prepared, files, store)
                    took |= {"content": store.content, "size": prepared.found[prepared.betas[1]].size}
                else:
                    design = prepare(settings, files, None).design
                    name = nsd_layout.STIMULI + (".chunked" if what == "images chunked" else "")
                    before = source.traffic.requests, source.traffic.nbytes
                    started = time.monotonic()
                    wanted = np.unique(design.stimulus)
                    with files.need(name) as file:
                        shape = (SIDE, SIDE, 3)
                        for _ in read_images(stimuli_layout(file), wanted, shape, lambda _: np.empty(shape, np.uint8)):
                            pass
                    took["size"] = len(wanted) * SIDE * SIDE * 3
                took["requests"] = source.traffic.requests - before[0]
                took["bytes"] = source.traffic.nbytes - before[1]
        took["seconds"] = time.monotonic() - started
    print(json.dumps(took | {"held": held, "peak": memory.peak, "resident": memory.resident}))


def measure(root: Path, what: str, latency_ms: float) -> dict[str, float]:
    """Run one fetch in a process of its own, against a server in another."""
    import shutil

    me = [sys.executable, __file__, "--folder", str(root)]
    server = subprocess.Popen([*me, "--serve", str(latency_ms)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        shutil.rmtree(root / "study", ignore_errors=True)
        done = subprocess.run([*me, "--fetch", what, port], check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench_nsd"))
    parser.add_argument("--latency", type=float, nargs="*", default=LATENCY_MS, help="milliseconds added to a request")
    parser.add_argument("--all", action="store_true", help=f"fetch {ALL} sessions and their images as well")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--fetch", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    root = given.folder.absolute()
    if given.serve is not None:
        serve(root, given.serve)
    elif given.fetch:
        fetch(root / "study", int(given.fetch[1]), given.fetch[0])
    else:
        build(root)
        for what in ("hdf5", "nii.gz", "images contiguous", "images chunked", *(["all"] if given.all else [])):
            for latency in given.latency:
                found = measure(root, what, latency)
                peak = f"{(found['peak']) / 1e6:.0f} MB peak ({found['held'] / 1e6:.0f} held at the start)"
                moved = ""
                if "bytes" in found:
                    of = "the file" if what in ("hdf5", "nii.gz") else "the images"
                    share = f"{100 * found['bytes'] / found['size']:.2f} % of {of}"
                    moved = f"{found['bytes'] / 1e6:.1f} MB ({share}) in {found['requests']} requests, "
                if "planned" in found:
                    peak += f", {(found['planned'] + found['held']) / 1e6:.0f} MB planned"
                print(f"{what:18} {latency:3.0f} ms: {moved}{found['seconds']:.1f} s, {peak}", flush=True)


if __name__ == "__main__":
    main()
