"""What the command line prints: texts that can't steer the terminal, failures in one sentence, the end of a run."""

import errno
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer

from leanrecon.errors import plain


def stop(text: str) -> NoReturn:
    """Say why the command ends, and end it with exit code 2."""
    say(f"leanrecon: {text}", err=True)
    sys.exit(2)


def of_system(error: OSError) -> str:
    """What the system refused, with what to do."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    advice = {
        errno.ENOSPC: "Free some space and run the same command again; everything written so far is kept",
        errno.EDQUOT: "Free some space and run the same command again; everything written so far is kept",
        errno.EMFILE: "Raise the limit of open files (ulimit -n 1024) and run the same command again",
        errno.ENFILE: "Close other programs and run the same command again",
        errno.EACCES: "Check the permissions, or choose a folder you may write to",
        errno.EPERM: "Check the permissions, or choose a folder you may write to",
        errno.EROFS: "Choose a folder you may write to",
        errno.EISDIR: "Give a file, not a folder",
        errno.ENOTDIR: "Give a folder, not a file",
        errno.ENAMETOOLONG: "Give a shorter name",
    }
    return f"{what}. {advice.get(error.errno or 0, 'Check the path and the disk, and run the same command again')}."


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text in which names and messages of others can't steer the terminal."""
    typer.echo(plain(text), err=err, nl=nl)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line."""
    typer.echo(f"leanrecon: {plain(message)}", err=True)


def tell_end(folder: Path, last: str, seconds: float) -> None:
    """Say how long a run took and, once it was evaluated, whether the decoding worked."""
    minutes, rest = divmod(round(seconds), 60)
    say(f"{minutes} min {rest} s in total" if minutes else f"{seconds:.1f} s in total")
    if last != "evaluate":
        return
    from leanrecon.evaluation.report.verdict import verdict
    from leanrecon.places.files import read_json
    from leanrecon.study.layout import Study

    if isinstance(metrics := read_json(Study(folder).metrics), dict):
        say(verdict(metrics).text)
