"""Mutations of files: bytes that flip, ranges that move, text and JSON with values of other types and sizes."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

TEXT = (".json", ".toml", ".csv", ".tsv", ".txt")

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**62, 2**63, 2**64 - 1)
"""Values at the edges of integers, written over bytes that may be a size, a shape or an offset."""

TOKENS = (
    *(
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "9" * 400,
        "1" * 5000,
        "0x7f",
        "true",
        "null",
        "",
        " ",
        '""',
        "[]",
        "{}",
        "[[]]",
    ),
    *(
        "[" * 3000,
        "{" * 100,
        '"' + "x" * 5000 + '"',
        '"\\ud800"',
        "\x1b[31m",
        "\x00",
        "\ufeff",
        "~nobody/x",
        "../" * 50,
    ),
)
"""Text put in place of a number, a string or a punctuation mark."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    [],
    [[]],
    {},
    {"x": 1},
)
"""Values put in place of a part of a JSON document."""


def mutated(data: bytes, suffix: str, random_: random.Random) -> bytes:
    """The bytes of a file after one to three mutations; ``suffix`` tells text from binary files."""
    kinds = [*BINARY]
    if suffix in TEXT:
        kinds = [*BINARY, *4 * [_token]]
    if suffix == ".json":
        kinds += 8 * [_json]
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        data = random_.choice(kinds)(data, random_)
    return data


def _flip(data: bytes, random_: random.Random) -> bytes:
    if not data:
        return b"\x00"
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 8))):
        changed[_place(changed, random_)] ^= 1 << random_.randrange(8)
    return bytes(changed)


def _number(data: bytes, random_: random.Random) -> bytes:
    size, order = random_.choice((1, 2, 4, 8)), random_.choice(("little", "big"))
    value = random_.choice(NUMBERS) % (1 << 8 * size)
    at = _place(data, random_)
    return data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def _truncate(data: bytes, random_: random.Random) -> bytes:
    return data[: random_.randrange(len(data) + 1)]


def _zero(data: bytes, random_: random.Random) -> bytes:
    start, stop = _range(data, random_)
    return data[:start] + bytes(stop - start) + data[stop:]


def _remove(data: bytes, random_: random.Random) -> bytes:
    start, stop = _range(data, random_)
    return data[:start] + data[stop:]


def _repeat(data: bytes, random_: random.Random) -> bytes:
    start, stop = _range(data, random_)
    return data[:stop] + data[start:stop] * random_.choice((1, 1, 5)) + data[stop:]


def _insert(data: bytes, random_: random.Random) -> bytes:
    at = _place(data, random_)
    return data[:at] + random_.randbytes(random_.choice((1, 4, 64))) + data[at:]


def _swap(data: bytes, random_: random.Random) -> bytes:
    a, b = sorted((_place(data, random_), _place(data, random_)))
    return data[:a] + data[b : b + 8] + data[a + 8 : b] + data[a : a + 8] + data[b + 8 :]


def _token(data: bytes, random_: random.Random) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    tokens = list(re.finditer(r"\"[^\"]*\"|[\d.+-]+|\w+|[^\s\w]", text))
    if not tokens:
        return random_.choice(TOKENS).encode("utf-8", "surrogatepass")
    token = random_.choice(tokens)
    other = random_.choice((random_.choice(TOKENS), random_.choice(tokens)[0], '"' + random_.choice(tokens)[0] + '"'))
    return (text[: token.start()] + other + text[token.end() :]).encode("utf-8", "surrogateescape")


def _json(data: bytes, random_: random.Random) -> bytes:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(data, random_)
    places = list(_places(document))
    if not places:
        return json.dumps(random_.choice(VALUES)).encode()
    container, key = random_.choice(places)
    action = random_.randrange(4)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container[key], list):
        container[key] = container[key] * random_.choice((0, 2, 3))
    else:
        container[key] = random_.choice((*VALUES, _near(container[key], random_)))
    return json.dumps(document).encode()


def _near(value: Any, random_: random.Random) -> Any:
    """A value of the same type, where there is one at hand."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return random_.choice((-value, value + 1, value * 1000, 10**12, float(value), str(value)))
    if isinstance(value, str):
        return random_.choice((value[:-1], value * 2, value + "\n", value.upper(), [value]))
    return [value]


def _places(document: Any) -> "list[tuple[Any, Any]]":
    """Every container of a JSON document with each of its keys or indices."""
    keys = document.keys() if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    here = [(document, key) for key in keys]
    return here + [place for key in keys for place in _places(document[key])]


def _place(data: bytes | bytearray, random_: random.Random) -> int:
    """A place in the data: half of the time among its first bytes, where headers are."""
    whole = max(len(data), 1)
    return random_.randrange(min(whole, 512) if random_.random() < 0.5 else whole)


def _range(data: bytes, random_: random.Random) -> tuple[int, int]:
    start = _place(data, random_)
    return start, min(start + random_.choice((1, 4, 40, 400, 4000)), len(data))


BINARY: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _number, _number, _truncate, _zero, _remove, _repeat, _insert, _swap),
)
