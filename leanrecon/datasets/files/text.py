"""Text of any size, read a piece at a time: lists of strings in JSON, and numbers between commas, blanks and lines."""

import codecs
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import explained_damage
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, open_buffered, open_text

Array = np.ndarray[Any, Any]

PIECE = 2**18
"""Bytes of text that are read together."""

_BLANK = " \t\n\r"


class JsonText:
    """The characters of a JSON file, as many at a time as the next string takes; raises ValueError for what is not JSON."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.before = "", 0, 0

    def _more(self) -> bool:
        """Read on: as much again as waits, so that a long string is looked through a few times only."""
        waiting = len(self.text) - self.at
        data = self.file.read(max(PIECE, waiting))
        self.before += self.at
        self.text = self.text[self.at :] + self.decoder.decode(data, not data)
        self.at = 0
        return bool(data)

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _BLANK:
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character that is not blank, which has to be one of ``wanted``."""
        found = self.peek()
        if not found or found not in wanted:
            raise ValueError(f"{found or 'its end'!r} at character {self.before + self.at}, where {wanted!r} may be")
        self.at += 1
        return found

    def string(self) -> str:
        self.take('"')
        begin, look = self.at - 1, self.at
        while True:
            end = self.text.find('"', look)
            if end < 0:
                look, self.at = len(self.text) - begin, begin
                if not self._more():
                    raise ValueError(f"a string that begins at character {self.before} doesn't end")
                begin = 0
                continue
            slashes = end
            while self.text[slashes - 1] == "\\":
                slashes -= 1
            if (end - slashes) % 2 == 0:
                self.at = end + 1
                return str(json.loads(self.text[begin : end + 1]))
            look = end + 1

    def items(self) -> Iterator[None]:
        """Once for each item of a list, which the caller takes."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield
            if self.take(",]") == "]":
                return

    def skip(self) -> None:
        """Go past one value, however deep it is nested."""
        depth = 0
        while True:
            found = self.peek()
            if found == '"':
                self.string()
            elif found in ("[", "{"):
                self.take(found)
                depth += 1
            elif found in ("]", "}") and depth:
                self.take(found)
                depth -= 1
            elif found in (",", ":") and depth:
                self.take(found)
                continue
            elif found and found not in ",:]}":
                while self.at < len(self.text) and self.text[self.at] not in f'{_BLANK},:]}}["{{':
                    self.at += 1
                    if self.at == len(self.text):
                        self._more()
            else:
                raise ValueError(f"{found or 'its end'!r} at character {self.before + self.at}")
            if not depth:
                return


def json_rows(path: InputFile, key: str | None) -> Iterator[tuple[int, str]]:
    """Each string of a list of strings, or of lists of strings, with the number of its row; raises InputError."""
    expected = "a string, or a list of strings, for each row"

    def rows(text: JsonText) -> Iterator[tuple[int, str]]:
        if text.peek() != "[":
            raise InputError(f"{path} doesn't hold captions", expected=expected)
        for row, _ in enumerate(text.items()):
            nested = text.peek() == "["
            for _ in text.items() if nested else (None,):
                if text.peek() not in ('"', ""):
                    raise InputError(f"{path} doesn't hold captions in row {row}", expected=expected)
                yield row, text.string()
            yield row, ""  # an empty list is a row, too

    with explained_damage(str(path)), open_buffered(path) as file:
        text = JsonText(file)
        if key is None:
            yield from rows(text)
        else:
            yield from _under_key(path, key, text, rows)
        if text.peek():
            raise ValueError(f"more behind its end, at character {text.before + text.at}")


def _under_key(path: InputFile, key: str, text: JsonText, rows: Any) -> Iterator[tuple[int, str]]:
    found = 0
    if text.peek() == "{":
        text.take("{")
        more = text.peek() != "}"
        if not more:
            text.take("}")
        while more:
            name = text.string()
            text.take(":")
            if name == key:
                found += 1
                if found > 1:
                    raise InputError(f"{path} has the entry {key!r} twice", expected="one")
                yield from rows(text)
            else:
                text.skip()
            more = text.take(",}") == ","
    if not found:
        raise InputError(f"{path} has no entry {key!r}", expected="an object with that key")


def text_rows(path: InputFile) -> Iterator[tuple[int, str]]:
    """Each caption of a text file with a row a line and tabs between captions, with the number of its row."""
    row = -1
    with explained_damage(str(path)), open_text(path) as file:
        for row, line in enumerate(file):
            for caption in line.removesuffix("\n").split("\t"):
                yield row, caption
    if row < 0:
        yield 0, ""


def _words(path: InputFile) -> Iterator[list[str]]:
    """The words of a text file, some lines at a time; what follows # in a line is left out, as NumPy does."""
    with explained_damage(str(path)), open_text(path) as file:
        rest, comment = "", False
        while piece := file.read(PIECE):
            lines = (rest + piece).splitlines(keepends=True)
            rest = ""
            words: list[str] = []
            for line in lines:
                body, mark, _ = ("", "", "") if comment else line.partition("#")
                comment = (comment or bool(mark)) and not line.endswith("\n")
                if not line.endswith("\n") and not mark and line is lines[-1] and len(line) < PIECE:
                    cut = max(body.rfind(c) for c in " \t,;") + 1
                    body, rest = body[:cut], body[cut:]
                words += body.replace(",", " ").replace(";", " ").split()
            yield words
        yield rest.replace(",", " ").replace(";", " ").split()


def read_numbers(path: InputFile, most: int) -> Array:
    """Whole numbers, int64, or true and false, bool; raises InputError for anything else, and for more than ``most``.

    Whole numbers may be written as ``numpy.savetxt`` does: 3.000000000000000000e+00.
    """
    parts: list[Array] = []
    count = 0
    for words in _words(path):
        if not words:
            continue
        part = _parse(path, words)
        if parts and part.dtype != parts[0].dtype:
            raise _no_numbers(path, words[0])
        parts.append(part)
        count += len(words)
        if count > most:
            raise InputError(
                f"{path} holds more than {most} numbers", expected=f"row numbers, or a mask, of {most} rows"
            )
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _parse(path: InputFile, words: list[str]) -> Array:
    if words[0].lower() in ("true", "false"):
        bad = next((word for word in words if word.lower() not in ("true", "false")), None)
        if bad is not None:
            raise _no_numbers(path, bad)
        return np.array([word.lower() == "true" for word in words])
    try:
        return np.array([int(word) for word in words], np.int64)
    except (ValueError, OverflowError):
        pass
    numbers = np.empty(len(words), np.int64)
    for k, word in enumerate(words):
        try:
            value = float(word)
            numbers[k] = int(value)
        except (ValueError, OverflowError) as error:
            raise _no_numbers(path, word) from error
        if value != numbers[k]:
            raise _no_numbers(path, word)
    return numbers


def _no_numbers(path: InputFile, word: str) -> InputError:
    shown = word if len(word) <= 40 else f"{word[:40]}…"
    return InputError(f"{path} holds {shown!r}", expected="only row numbers, or a mask of true and false")
