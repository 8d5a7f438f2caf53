"""What the command line prints: texts that can't steer the terminal, failures in one sentence, the end of a run."""

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer

from leanrecon.errors import plain
from leanrecon.progress import format_seconds

if TYPE_CHECKING:
    from leanrecon.places import LocationLike


class Output:
    """Standard output or errors; ``gone`` says that nobody reads it any more, where libraries only give exit code 1."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.gone = False

    def write(self, text: str) -> int:
        """Write a text; raises BrokenPipeError where nobody reads."""
        written: int = self._try(self.stream.write, text)
        return written

    def flush(self) -> None:
        """Hand on what is waiting; raises BrokenPipeError where nobody reads."""
        self._try(self.stream.flush)

    def discard(self) -> None:
        """Let what is still waiting go nowhere."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def _try(self, call: Any, *given: Any) -> Any:
        try:
            return call(*given)
        except BrokenPipeError:
            self.gone = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def stop(text: str) -> NoReturn:
    """Say why the command ends, and end it with exit code 2."""
    say(f"leanrecon: {text}", err=True)
    sys.exit(2)


def of_system(error: OSError) -> str:
    """What the system refused, with what to do."""
    from leanrecon.places.disk import advice

    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    todo = advice(error) or "check the path and the disk, and run the same command again"
    return f"{what}. {todo[0].upper()}{todo[1:]}."


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text in which names and messages of others can't steer the terminal."""
    typer.echo(plain(text), err=err, nl=nl)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line."""
    typer.echo(f"leanrecon: {plain(message)}", err=True)


def tell_end(folder: "LocationLike", last: str, seconds: float) -> None:
    """Say how long a run took and, once it was evaluated, the main scores and whether the decoding worked."""
    say(f"{format_seconds(seconds)} in total")
    if last != "evaluate":
        return
    from leanrecon.evaluation.report.summary import main_scores
    from leanrecon.evaluation.report.verdict import verdict
    from leanrecon.places.files import read_json
    from leanrecon.study.layout import Study

    if isinstance(metrics := read_json(Study(folder).metrics), dict):
        for line in main_scores(metrics):
            say(line)
        say(verdict(metrics).text)
