"""Commands about leanrecon itself and the machine."""

from pathlib import Path
from typing import Annotated

import typer

from leanrecon.app.options import Memory, app
from leanrecon.app.terminal import say
from leanrecon.errors import SettingsError


@app.command()
def doctor(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE_OR_FILE]...", help="With --weights: check only the networks of these."),
    ] = None,
    memory: Memory = None,
    vdvae: Annotated[
        Path | None, typer.Option("--vdvae", metavar="FILE", help="Check a file of VDVAE weights instead.")
    ] = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights", help="Check the networks whose weights are on this machine, and keep reference embeddings."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --weights: replace the reference embeddings.")
    ] = False,
    bench: Annotated[
        bool,
        typer.Option(
            "--bench", help="Measure matrix products, disk and stores, from which `leanrecon plan` computes times."
        ),
    ] = False,
    study: Annotated[
        Path | None,
        typer.Option(
            "--study", metavar="FOLDER|URL", help="With --bench: the folder to measure in; by default this one."
        ),
    ] = None,
) -> None:
    """Show what this machine has, what each recipe needs, and whether it fits.

    Examples: leanrecon doctor; leanrecon doctor --weights nsd; leanrecon doctor --bench --study s3://bucket/studies
    """
    from leanrecon.app.doctor import show, show_vdvae

    if study is not None and not bench:
        raise SettingsError("--study is given without --bench", todo="add --bench, which measures there")
    if (sources or overwrite) and not weights:
        raise SettingsError("a recipe, a settings file or --overwrite is given without --weights", todo="add --weights")
    checks = {"--bench": bench, "--weights": weights, "--vdvae": vdvae is not None}
    if len(given := [name for name, asked in checks.items() if asked]) > 1:
        raise SettingsError(f"{' and '.join(given)} are different checks", todo="give one of them")
    if bench:
        from leanrecon.app.bench import bench as measure

        measure(study or Path(), memory)
    elif weights:
        from leanrecon.app.weights import check_weights

        check_weights(sources or [], memory, overwrite=overwrite)
    elif vdvae is not None:
        show_vdvae(vdvae)
    else:
        show(memory)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print the settings file of this recipe.")
    ] = None,
) -> None:
    """List the recipes that come with leanrecon: paper, data, weights and licences, memory, time, what was reported.

    Examples: leanrecon recipes; leanrecon recipes nsd > study.toml
    """
    from leanrecon.app.recipes import every, text_of

    if name is not None:
        typer.echo(text_of(name), nl=False)
        return
    known = list(every())
    for one in known:
        for line in one.lines():
            say(line)
        say("")
    shown = ", ".join(one.name for one in known if one.demo)
    say(f"`leanrecon demo --recipe NAME` shows one at small size on simulated data: {shown}")


@app.command("kinds")
def list_kinds(
    group: Annotated[
        str | None, typer.Argument(help="A group (datasets, features, regressors, …), or a kind's name.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="One kind of the group.")] = None,
) -> None:
    """List the kinds of datasets, feature spaces, regressors, … with their settings, and who provides them.

    Examples: leanrecon kinds; leanrecon kinds ridge; leanrecon kinds features vdvae
    """
    from leanrecon.app.kinds import show

    show(group, name)
