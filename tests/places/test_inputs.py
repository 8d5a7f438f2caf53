"""Files that are read by ranges: the bytes of the file in any order of reading, in few requests and little memory."""

import io

import numpy as np
import pytest
from support.memory_place import MemoryPlace

from leanrecon.errors import InputError
from leanrecon.places import inputs
from leanrecon.places.inputs import DIRECT, KEPT, MOST, PAGE, RangedFile, in_spans, streamed

DATA = np.random.default_rng(3).integers(0, 256, 21_000_000, np.uint8).tobytes()


class Counted(MemoryPlace):
    """A place that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def read_into(self, key: str, memory: np.ndarray, offset: int = 0, cached: bool = True) -> int:
        self.asked.append(len(memory))
        return super().read_into(key, memory, offset, cached)


@pytest.fixture
def place() -> Counted:
    found = Counted()
    found.at("a").write_bytes(DATA)
    return found


def test_any_pieces_in_any_order_are_those_of_the_file(place: Counted) -> None:
    file, rng = RangedFile(place.at("a")), np.random.default_rng(0)
    for _ in range(300):
        at, n = int(rng.integers(0, len(DATA))), int(rng.choice([1, 8, 5_000, PAGE + 3, DIRECT, DIRECT + 1, 5_000_000]))
        memory = np.zeros(n, np.uint8)
        file.seek(at)
        got = file.readinto(memory)
        assert got == min(n, len(DATA) - at), "libraries in C take what is missing for zeros"
        assert memory[:got].tobytes() == DATA[at : at + got]
        assert file.tell() == at + got
        assert sum(len(page) for page in inputs._PAGES._of.values()) <= KEPT


def test_a_file_that_is_read_on_and_on_takes_ever_longer_requests(place: Counted) -> None:
    with io.BufferedReader(RangedFile(place.at("a"))) as file:
        assert b"".join(iter(lambda: file.read(10_000), b"")) == DATA
    assert place.asked[:5] == [PAGE, 2 * PAGE, 4 * PAGE, 8 * PAGE, MOST]
    assert len(place.asked) == streamed(len(DATA)) == 9


def test_a_header_takes_one_page_and_once(place: Counted) -> None:
    for _ in range(3):
        file = RangedFile(place.at("a"))
        file.seek(100)
        assert file.read(50) == DATA[100:150]
    assert place.asked == [PAGE]


def test_a_file_that_was_written_again_is_not_taken_for_the_earlier_one(place: Counted) -> None:
    assert RangedFile(place.at("a")).read(4) == DATA[:4]
    place.at("a").write_bytes(DATA[::-1])
    assert RangedFile(place.at("a")).read(4) == DATA[:-5:-1]


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(place: Counted) -> None:
    file = RangedFile(place.at("a"))
    place.at("a").write_bytes(DATA[:6_000_000])
    file.seek(5_000_000)
    with pytest.raises(InputError, match="ends at byte 6000000, and had 21000000 bytes when it was opened"):
        file.read(2_000_000)


def test_what_is_not_there_is_told(place: Counted) -> None:
    with pytest.raises(InputError, match="there is no file memory:b"):
        RangedFile(place.at("b"))


@pytest.mark.parametrize(
    ("rows", "nbytes", "at_once", "expected"),
    [
        (1000, 2**20, 100, 10 * 25),  # four rows a request, no rest in a group of 100
        (1000, 2**20, 102, 9 * 26 + 21),  # a rest in each of nine groups of 102 and in one of 82
        (10, 2**23, 1, 10),  # a row above 4 MB is one request
        (8, 2**20, 1000, 2),
        (100, 1000, 7, 1),  # read on and on
    ],
)
def test_spans_of_rows_are_counted(rows: int, nbytes: int, at_once: int, expected: int) -> None:
    assert in_spans(rows, nbytes, at_once, 2**22) == expected


def test_a_drive_letter_is_no_scheme() -> None:
    assert not inputs.is_url(r"C:\data\betas.npy:key")
    assert not inputs.is_url("C://data/betas.npy")
    assert not inputs.is_url("betas.h5:group/s3://x")
    assert inputs.is_url("s3://bucket/betas.npy")
    assert inputs.names_bucket({"a": ["x", {"b": "gs://bucket/c"}]})
    assert not inputs.names_bucket({"a": "https://host/b", "c": 3})
