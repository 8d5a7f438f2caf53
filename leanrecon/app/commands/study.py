"""Commands that run a study and keep it sound."""

import os
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanrecon.app.options import (
    ClusterOption,
    Memory,
    Overwrite,
    Sets,
    Source,
    StudyFolder,
    Until,
    app,
    folder_of,
    progress,
    read,
    require_study,
    telling_data,
)
from leanrecon.app.terminal import say, tell_end
from leanrecon.errors import LeanreconError, SettingsError

if TYPE_CHECKING:
    from leanrecon.study.settings import Settings

INSTALL_MODELS = 'pip install ".[models]"'
"""How README installs the networks' libraries."""

_NETWORKS = ("torch", "transformers", "diffusers")  # that the demo runs


@app.command()
def run(
    source: Source,
    study: StudyFolder = None,
    memory: Memory = None,
    until: Until = None,
    overwrite: Overwrite = False,
    sets: Sets = None,
    mirror: Annotated[
        Path | None,
        typer.Option(
            "--mirror", metavar="FOLDER|URL", help="Copy finished results there, and restore a lost study from there."
        ),
    ] = None,
    cluster: ClusterOption = None,
) -> None:
    """Run a study, or continue one that was stopped.

    Examples: leanrecon run demo-fast; leanrecon run study.toml --study results --memory 4GB --set regression.alpha=1000
    """
    settings, base_dir = read(source, sets, memory)
    from leanrecon.execution.cluster import Cluster
    from leanrecon.stages.pipeline import Pipeline, stages_until
    from leanrecon.study.layout import Study

    workers = None if cluster is None else Cluster(cluster)
    last = stages_until(settings, until)[-1].name
    folder = folder_of(source, study)
    began = time.monotonic()
    options: dict[str, Any] = {"overwrite": overwrite, "progress": progress(), "mirror": mirror, "cluster": workers}
    with telling_data(source, sets):
        if settings.dataset.open_terms:  # nobody reads terms for a run that lacks a file
            Pipeline(settings, Study(folder), base_dir=base_dir, **options).check(last)
        if accepts_terms(settings):
            settings, base_dir = read(source, [*(sets or ()), "dataset.accept_terms=true"], memory)
        Pipeline(settings, Study(folder), base_dir=base_dir, **options).run(last)
    tell_end(folder, last, time.monotonic() - began)
    say(f"done: {Study(folder).report if last == 'evaluate' else folder}")


def accepts_terms(settings: "Settings") -> bool:
    """Whether a person at the terminal accepts the dataset's terms of use, where the settings leave that open."""
    terms = settings.dataset.open_terms
    if not terms or not sys.stdin.isatty():
        return False
    for line in terms.splitlines():
        say(line)
    return typer.confirm("Do you accept them?")


@app.command()
def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="Use no networks and fewer images: takes half a minute.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="NAME", help="Run another recipe at small size, on simulated data in its own layout."
        ),
    ] = None,
    study: StudyFolder = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    sets: Sets = None,
    cluster: ClusterOption = None,
) -> None:
    """Reconstruct what a simulated subject saw, offline and on any machine.

    Examples: leanrecon demo; leanrecon demo --fast; leanrecon demo --recipe miyawaki
    """
    if fast and recipe:
        raise SettingsError("--fast and --recipe are two demos", todo="give one of them")
    from leanrecon.app.demos import Demo, run_demo

    runs_networks = not fast if recipe is None else bool(Demo.of(recipe).networks)
    lacking = [name for name in _NETWORKS if find_spec(name) is None]
    if lacking and runs_networks:
        raise LeanreconError(
            f"the demo needs {', '.join(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed",
            todo=f"install with {INSTALL_MODELS} in the folder of leanrecon, or run `leanrecon demo --fast`, which needs no networks",
        )
    # Small networks gain nothing from a second thread, and waiting threads lose much time on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if recipe is not None:
        run_demo(recipe, study, memory, overwrite=overwrite, sets=sets, cluster=cluster)
        return
    from leanrecon.study.recipes import recipes

    name = "demo-fast" if fast else "demo"  # the recipe, whatever study of that name is here
    run(str(recipes()[name]), study or Path(name), memory, overwrite=overwrite, sets=sets, cluster=cluster)


@app.command()
def plan(
    source: Source,
    memory: Memory = None,
    until: Until = None,
    sets: Sets = None,
    study: StudyFolder = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=9999, help="Show times for this number of workers of a cluster."),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth", metavar="RATE", help='Bandwidth that all machines share to the study, as in "1Gbit".'
        ),
    ] = None,
) -> None:
    """Show the memory and disk that every stage needs, without running it; exit code 2 if a stage does not fit.

    With --workers, --bandwidth or a study in a bucket, also its time, bytes and requests. With --workers, disk counts the
    parts of fits that these leave for a while.

    Examples: leanrecon plan nsd; leanrecon plan study.toml --memory 4GB; leanrecon plan nsd --workers 8 --bandwidth 1Gbit
    """
    from leanrecon.app.work import parse_bandwidth, show_work

    rate = None if bandwidth is None else parse_bandwidth(bandwidth)
    settings, base_dir = read(source, sets, memory)
    from leanrecon.app.plan import show
    from leanrecon.stages.pipeline import plan_study, stages_until
    from leanrecon.study.needs import missing

    names = [stage.name for stage in stages_until(settings, until)]
    folder = folder_of(source, study)
    with telling_data(source, sets):
        lines = plan_study(settings, base_dir=base_dir, until=until, study=folder)
    if workers is not None:
        lines = [replace(line, scratch=line.scratch + line.shared_scratch) for line in lines]
    fits = show(lines, settings.general.memory, missing(settings, names))
    if workers is not None or rate is not None or folder.place.local_path(folder.key) is None:
        show_work(lines, folder, workers or 1, rate)
    if not fits:
        raise typer.Exit(2)


@app.command("fetch-weights")
def fetch_weights(source: Source, sets: Sets = None) -> None:
    """Download the weights that settings need: only the needed files; interrupted downloads continue, and files are checked.

    Examples: leanrecon fetch-weights nsd; leanrecon fetch-weights study.toml
    """
    settings, _ = read(source, sets, None)
    from leanrecon.study.needs import needed
    from leanrecon.weights.fetch import fetch_all
    from leanrecon.weights.needs import require_packaged

    needs = needed(settings)
    require_packaged(needs)
    fetch_all(needs, progress())
    say("all weights are here" if needs else "these settings need no weights")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="The folder or URL of a study, or of one of its stores.")],
    repair: Annotated[bool, typer.Option("--repair", help="Make damaged files again, and nothing else.")] = False,
) -> None:
    """Check every file of a study, and name those that are missing or damaged.

    Examples: leanrecon verify results; leanrecon verify results --repair
    """
    from leanrecon.places import as_location
    from leanrecon.stages.repair import mend
    from leanrecon.study.verify import find_damage

    where = as_location(path)
    damaged = find_damage(where, progress=progress())
    for chunks in damaged.values():
        for _, what in chunks:
            say(what)
    if not damaged:
        say("all chunks are sound")
    elif repair:
        mend(where, damaged, progress=progress())
        say("repaired")
    else:
        raise typer.Exit(1)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="The folder or URL of a study that was run to its end.")],
) -> None:
    """Write report.html again, from the scores and images that a study holds.

    Example: leanrecon report results
    """
    from leanrecon.stages.pipeline import evaluate_stage
    from leanrecon.stages.stage import Run
    from leanrecon.study.layout import Study
    from leanrecon.study.lock import only_run
    from leanrecon.study.recipes import read_settings

    of = Study(require_study(study))
    settings, _ = read_settings(of.settings)
    with only_run(of.root):
        evaluate_stage(settings).report(Run(settings, of, progress=progress()))
    say(f"wrote {of.report}")


@app.command()
def mirror(
    study: Annotated[Path, typer.Argument(help="The folder or URL of a study.")],
    folder: Annotated[Path, typer.Argument(help="The folder or URL to copy to: empty, or a mirror of this study.")],
    overwrite: Overwrite = False,
) -> None:
    """Copy what a study has finished to another folder or bucket, and verify it; existing copies are not copied again.

    Example: leanrecon mirror results /mnt/drive/results
    """
    from leanrecon.study.lock import only_run
    from leanrecon.study.mirror import Mirror

    kept = Mirror(require_study(study), folder, overwrite=overwrite, progress=progress())
    with only_run(kept.root), kept.held():
        kept.keep()
    say(f"all that {kept.root} has finished is in {kept.folder}")
