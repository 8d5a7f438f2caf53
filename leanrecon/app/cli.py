"""The command line: all commands, and what becomes of errors. Heavy imports wait for the command that needs them."""

import contextlib
import gc
import sys
import warnings
from importlib import import_module
from typing import Annotated

import typer

from leanrecon import __version__
from leanrecon.app.options import app
from leanrecon.app.terminal import Output, of_system, say, show_warning, stop
from leanrecon.errors import LeanreconError

for _commands in ("study", "results", "data", "about"):  # in the order of the help
    import_module(f"leanrecon.app.commands.{_commands}")

_PIPE = 141  # as shells tell of a process that a closed pipe ended

_INTERRUPTED = 130  # what typer makes of Ctrl-C, as shells do


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        say(f"leanrecon {__version__}")
        raise typer.Exit


_COLLECTING = 20_000, 20, 100
"""Numbers of new objects, and of collections, after which Python looks for cycles of garbage: less often than by default.

Importing the libraries of models makes a million objects that stay, which it looked through again and again.
"""


def main() -> None:
    """Run the command line; a user's mistake or a limit of the machine is one sentence and exit code 2.

    Where the reader of the output has gone, as `head` does, the command ends without a word.
    """
    gc.set_threshold(*_COLLECTING)
    warnings.showwarning = show_warning
    output, errors = Output(sys.stdout), Output(sys.stderr)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            _run()
    except (SystemExit, BrokenPipeError):
        gone = [stream for stream in (output, errors) if stream.gone]
        if not gone:
            raise
        for stream in gone:
            stream.discard()
        sys.exit(_PIPE)


def _run() -> None:
    try:
        app()
    except LeanreconError as error:
        stop(str(error))
    except BrokenPipeError:  # main tells whose it is
        raise
    except KeyboardInterrupt:
        say("leanrecon: stopped; the same command continues from here", err=True)
        sys.exit(_INTERRUPTED)
    except OSError as error:
        if error.errno is None:
            raise
        stop(of_system(error))
    except MemoryError:
        stop("The memory of this machine ran out. Give a smaller --memory, or close other programs.")
    except RecursionError:
        stop("An input holds lists or tables that are nested too deeply. Check the settings and the JSON files.")
    except SystemExit as exit_:
        if exit_.code == _INTERRUPTED:
            say("leanrecon: stopped; the same command continues from here", err=True)
        raise
