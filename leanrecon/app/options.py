"""What commands share: the app they belong to, their options, and how settings, folders and progress are found."""

import contextlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from leanrecon.app.terminal import say
from leanrecon.errors import InputError, LeanreconError, SettingsError

if TYPE_CHECKING:
    from leanrecon.places import Location
    from leanrecon.progress import Progress
    from leanrecon.study.settings import Settings

LACKS_DATA = re.compile("there is no (file|folder)|which is not set")
"""What an error says where a recipe as it comes lacks its data."""


class Commands(typer.core.TyperGroup):
    """All commands; an argument that is empty, as of a shell's variable that is not set, is refused: for a path it
    would mean the current folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, text in pairwise(["", *args]):
            name, equals, value = text.partition("=")
            if not text or (equals and not value and re.fullmatch("--[a-z-]+", name)):
                option = before if not text and before.startswith("-") else name
                raise SettingsError(
                    f"{option or 'an argument'} is empty",
                    expected="a value",
                    todo='give one, or leave the option out; "." is the current folder' if option else None,
                )
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reconstruct the images a person saw from their fMRI, in a stated memory budget.",
)

Source = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_FILE", help="A recipe's name, a settings file (TOML), or the folder or URL of a study."
    ),
]
StudyFolder = Annotated[
    Path | None,
    typer.Option(
        "--study", metavar="FOLDER|URL", help="The study's folder; by default one named after the settings file."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help='Memory that the process may hold, as in "4GB"; by default that of the settings, or 80 % of the free memory.',
    ),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="STAGE",
        help="Last stage to run: dataset, features, regression, stage1, decode, refine, evaluate.",
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Dask workers that share the work: tcp://HOST:PORT, the scheduler's JSON file, or local:N for N workers here.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results of other settings.")]


def read(source: str, sets: list[str] | None, memory: str | None) -> "tuple[Settings, Path]":
    """The settings of a recipe, file or study, and the folder that their paths start from."""
    from leanrecon.study.recipes import read_settings, recipes

    if str(source) in recipes() and not _is_recipe(source):
        say(f"{source} is a study here: its own settings hold, not those of the recipe {source}", err=True)
    with telling_data(source, sets):
        return read_settings(source, sets or (), memory=memory)


@contextlib.contextmanager
def telling_data(source: str, sets: list[str] | None) -> Iterator[None]:
    """Errors by which a recipe as it comes lacks its data tell where these come from, or how they are downloaded."""
    from leanrecon.weights.published import address_of

    as_it_comes = _is_recipe(source) and not sets  # asked first: a run begins a study of the same name
    try:
        yield
    except (InputError, SettingsError) as error:
        if not as_it_comes or not LACKS_DATA.search(error.found):
            raise
        if address_of(error.found.rpartition(" ")[2]) is not None:
            todo = f"download it with `leanrecon fetch-weights {source}`"
            raise type(error)(error.found, todo=todo) from error
        todo = f"see `leanrecon recipes {source}`, which tells where its data come from and how they are named"
        raise type(error)(error.found, expected=error.expected, todo=todo) from error


def _is_recipe(source: str) -> bool:
    """Whether a source is a recipe that comes with leanrecon, and no study of that name."""
    from leanrecon.study.recipes import find_settings, recipes

    return str(source) in recipes() and find_settings(source) == recipes()[str(source)]


def folder_of(source: str, study: Path | None) -> "Location":
    """The study's folder: as given, that of the study itself, or one named after the recipe or file."""
    from leanrecon.places import as_location, elsewhere

    if study is None and (away := elsewhere(source)) is not None:
        return away.parent if away.name == "study.toml" else away
    return as_location(study or _own_folder(source))


def _own_folder(source: str) -> Path:
    """The folder of the study that a source is, or one named after a recipe or a file."""
    from leanrecon.study.record import is_study

    path = Path(source)
    folder = path if path.is_dir() else path.parent
    return folder if (path.is_dir() or path.name == "study.toml") and is_study(folder) else Path(path.stem)


def require_study(folder: Path) -> "Location":
    """The folder of a study; raises LeanreconError for others."""
    from leanrecon.places import as_location
    from leanrecon.study.record import is_study

    found = as_location(folder)
    if not is_study(found):
        raise LeanreconError(f"{found} is not the folder of a study", todo="give the folder that `leanrecon run` wrote")
    return found


def require_free(file: Path, overwrite: bool) -> None:
    """Raise LeanreconError for a file that is there and may not be replaced."""
    if file.is_file() and not overwrite:
        raise LeanreconError(f"{file} is there already", todo="choose another name, or add --overwrite to replace it")


def progress() -> "Progress":
    """Bars on a terminal and in a notebook, lines elsewhere."""
    from rich.console import Console

    from leanrecon.progress import PlainProgress, RichProgress

    console: Any = Console(stderr=True)
    return RichProgress(console) if console.is_terminal or console.is_jupyter else PlainProgress()
