"""Try a server of buckets: a study is begun here, mirrored there, continued, verified, damaged and repaired there.

    export AWS_ENDPOINT_URL=http://localhost:9000 AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… AWS_REGION=us-east-1
    python scripts/check_bucket.py s3://bucket/an-empty-folder

It takes s3://, gs:// and az://. Every step prints a line, and the first one that fails ends it. The study is small and
made up (under a minute, some hundred requests). It is compared file by file with one that never left this machine, and
the folder is emptied at the end.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import leanrecon
from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.places import Location, as_location, lease
from leanrecon.places.bucket import Bucket, bucket_of
from leanrecon.places.seals import digest_of
from leanrecon.progress import Progress
from leanrecon.stages.repair import mend
from leanrecon.stores import Store
from leanrecon.study.lock import only_run
from leanrecon.study.verify import find_damage

SETTINGS = {
    "dataset": {"kind": "simulated", "n_train": 60, "n_test": 8, "voxels": 150, "size": 16},
    "stores": {"chunk": "8KB"},
    "features": {"pca": {"components": 20}, "pixels": {"size": 16}},
    "regression": {"alpha": 100.0},
    "evaluate": {"permutations": 1, "resamples": 100},
}

OF_ITS_OWN = {"run.json", "report.html"}
"""What tells the times and the memory of a run."""


def contents(root: Location) -> dict[str, str]:
    """The checksum of every file of a study, but those that tell of its run."""
    return {name: digest_of(file) for file in root.files() if (name := str(file.relative_to(root))) not in OF_ITS_OWN}


def check(there: Location, work: Path) -> None:
    """Take a study through all steps; raises SystemExit at the first that fails."""
    bucket, here = bucket_of(there.place.address("")), as_location(work / "here")
    leanrecon.run(SETTINGS, study=here, progress=Progress())
    expected = contents(here)
    step = Steps(bucket)
    lease.RENEWED = 1.0
    warnings.simplefilter("ignore", LeanreconWarning)  # of servers that ignore conditions: told once, below
    leanrecon.run(SETTINGS, study=work / "begun", until="features", mirror=there, progress=Progress())
    step("begun here and mirrored", len(list(there.files())) > 10)
    with warnings.catch_warnings(record=True, action="always") as warned, only_run(there):
        if any(one.category is LeanreconWarning for one in warned):
            print("conditions of writes are ignored: only one run at a time may be started")
        else:
            step("a second run is refused", refused(there))
            step("a hold is renewed", renewed(there / lease.NAME, bucket))
    leanrecon.run(SETTINGS, study=there, progress=Progress())
    step("continued there to the same bytes", contents(there) == expected)
    step("verified", find_damage(there) == {})
    chunk = Store.open(there / "features/pca/train.zarr").chunk_path(0)
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    (there / "betas/rows.json").write_bytes(b"{}")
    (there / "reconstructions/stage1/00003.png").unlink()
    damaged = find_damage(there)
    step("three damaged parts are found", len(damaged) == 3)
    mend(there, damaged)
    step("repaired to the same bytes", find_damage(there) == {} and contents(there) == expected)
    step("a file is written and read in parts", in_parts(there / "long"))
    there.delete_tree()
    step("emptied, and nothing is left", [key for key, _ in bucket.list(there.key)] == [])


def renewed(hold: Location, bucket: Bucket) -> bool:
    """Whether the file of a hold is written again while it lasts."""
    before = bucket.head(hold.key)
    time.sleep(3 * lease.RENEWED)
    return bucket.head(hold.key) not in (before, None)


def in_parts(file: Location) -> bool:
    """Whether a file of 20 MB, which is sent in parts, has the same bytes when it is read."""
    data = np.random.default_rng(0).bytes(20_000_000)
    with file.writing() as out:
        out.write(data)
    part = np.empty(1000, np.uint8)
    file.place.read_into(file.key, part, 9_999_999)
    return file.read_bytes() == data and part.tobytes() == data[9_999_999:][:1000]


def refused(there: Location) -> bool:
    """Whether a run of a study that is held raises the error that says so."""
    try:
        leanrecon.run(SETTINGS, study=there, progress=Progress())
    except StoreError as error:
        return "another run is using" in str(error)
    return False


class Steps:
    """Prints a line a step, with its seconds and what was asked of the bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.traffic, self.requests, self.began = bucket.traffic, bucket.traffic.requests, time.perf_counter()

    def __call__(self, what: str, good: bool) -> None:
        requests, now = self.traffic.requests, time.perf_counter()
        told = f"{what:<36} {now - self.began:6.1f} s {requests - self.requests:6} requests"
        if not good:
            sys.exit(f"{told}  FAILED")
        print(told, flush=True)
        self.requests, self.began = requests, now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="an empty folder of a bucket, such as s3://bucket/check")
    there = as_location(parser.parse_args().folder)
    if there.place.local_path(there.key) is not None:
        parser.error("give the URL of a folder in a bucket")
    if any(there.files()):
        parser.error(f"{there} is not empty")
    with tempfile.TemporaryDirectory() as work:
        check(there, Path(work))
    traffic = bucket_of(there.place.address("")).traffic
    print(
        f"all good: {traffic.requests} requests, {traffic.sent / 1e6:.1f} MB sent, {traffic.received / 1e6:.1f} MB received"
    )


if __name__ == "__main__":
    main()
