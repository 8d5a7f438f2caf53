"""Errors that a user can cause: each says what was found, what was expected and what to do."""

import re
import unicodedata

LONGEST = 3000
"""Most characters of a message: beyond them its middle is left out."""

_USER = re.compile(r"(?<=://)[^/\s?#@]+(?:@[^/\s?#@]+)*@")  # USER:TOKEN@ of a URL
_QUERY = re.compile(r"(?<=://)([^\s?#'\"<>]+)\?[^\s'\"<>)]+")  # ?X-Amz-Signature=… of one
_BEARER = re.compile(r"(?i)\b(authorization:?\s+\w+|bearer)\s+[\w.~+/=-]{8,}|\bhf_[A-Za-z0-9]{16,}")
_COMMANDS = {"pip", "conda", "git", "hf", "leanrecon", "datalad", "python", "uv", "brew", "apt", "aws"}


def plain(text: object) -> str:
    """A text that is safe in a terminal and a log: control characters are shown as escapes, credentials left out.

    File and array names may hold escape sequences, newlines and lone surrogates; URLs may hold a user, a token or a
    signature. Every message and warning passes here.
    """
    said = _cut(str(text), 30 * LONGEST)
    said = _BEARER.sub("(hidden)", _QUERY.sub(r"\1?…", _USER.sub("", said)))
    return _cut("".join(map(_visible, _cut(said, LONGEST))), LONGEST)


def has_credentials(text: str) -> bool:
    """Whether a text holds a URL with a user, a token or a signature, which must not be written down."""
    return bool(
        _USER.search(text) or re.search(r"(?i)://\S*[?&][^=\s]*(signature|token|credential|secret|key)[^=\s]*=", text)
    )


def shown(value: object, most: int = 60) -> str:
    """The repr of a value that a user gave, cut to ``most`` characters; any value has one."""
    try:
        text = repr(value if not isinstance(value, str | bytes) else value[: most + 1])
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def said_by(error: BaseException) -> str:
    """The first line of what another library's error says, without what it says to programmers."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.partition("; use sys.set_int_max_str_digits")[0][:200]


def installing(extra: str) -> str:
    """What to do where a library of an extra is not installed."""
    return f"install it with pip install '.[{extra}]' in the folder of leanrecon"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _visible(character: str) -> str:
    # Controls, formats (such as those that reverse text), surrogates and separators of lines and paragraphs.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return character


def _capitalised(sentence: str) -> str:
    """The sentence with a capital, unless it begins with the name of a file, a setting or a command."""
    word = sentence.split(maxsplit=1)[0] if sentence.strip() else ""
    if word in _COMMANDS or not re.fullmatch(r"[a-z]+[,;:]?", word):
        return sentence
    return sentence[0].upper() + sentence[1:]


class LeanreconError(Exception):
    """A mistake or a limit outside the program; the command line prints it and exits with 2.

    ``found`` is one sentence without a full stop; ``expected`` and ``todo``, where given, follow it.
    """

    def __init__(self, found: str, *, expected: str | None = None, todo: str | None = None) -> None:
        self.found = found = plain(found)
        self.expected = expected = None if expected is None else plain(expected)
        self.todo = todo = None if todo is None else plain(todo)
        sentences = [found]
        if expected:
            sentences.append(f"Expected {expected}")
        if todo:
            sentences.append(_capitalised(todo))
        super().__init__(". ".join(s.rstrip(".") for s in sentences) + ".")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.found, self.expected, self.todo)


def _rebuild(kind: type[LeanreconError], found: str, expected: str | None, todo: str | None) -> LeanreconError:
    return kind(found, expected=expected, todo=todo)


class InputError(LeanreconError, ValueError):
    """Data that can't be used: wrong shape, dtype, values, or missing."""


class SettingsError(LeanreconError, ValueError):
    """A setting that is unknown or out of range."""


class BudgetError(LeanreconError, MemoryError):
    """A memory budget too small for a stage; says the least that would do."""


class StoreError(LeanreconError, OSError):
    """A store that is incomplete, damaged, made of something else, or can't be written."""

    def __str__(self) -> str:  # OSError would print its arguments as a tuple
        return str(self.args[0])


class NetworkError(LeanreconError):
    """A server that can't be reached, that keeps failing, or that has something else than it is asked for.

    No OSError, which would be taken for one of the disk that is written to.
    """


class LeanreconWarning(UserWarning):
    """Something that a user should know about a result that is otherwise fine."""
