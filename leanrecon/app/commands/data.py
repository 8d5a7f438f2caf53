"""Commands about data: what a file is, and small simulated subjects in the layouts of the field."""

from pathlib import Path
from typing import Annotated

import typer

from leanrecon.app.options import app, progress, require_free
from leanrecon.app.terminal import say


@app.command("inspect")
def inspect_path(path: Annotated[Path, typer.Argument(help="A file or folder of data, or the URL of one.")]) -> None:
    """Recognise the layout of a file or folder, and print the settings that read it.

    Examples: leanrecon inspect my_data; leanrecon inspect betas.h5
    """
    from leanrecon.datasets.inspect.inspect import inspect

    typer.echo(inspect(path).text())


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(help="A file or folder of data that `leanrecon inspect` recognises, or its URL.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The settings file to write.")] = Path(
        "study.toml"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a settings file for data, with every other setting in a comment.

    Example: leanrecon init my_data && leanrecon plan study.toml
    """
    from leanrecon.app.init import study_text
    from leanrecon.places.files import write_text

    require_free(out, overwrite)
    write_text(out, study_text(folder))
    say(f"wrote {out}; next: leanrecon plan {out}")


@app.command("simulate-nsd")
def simulate_nsd(
    folder: Annotated[Path, typer.Argument(help="Folder to write the small NSD into.")],
    subject: Annotated[int, typer.Option(help="Number of the subject.")] = 1,
    sessions: Annotated[int, typer.Option(help="Number of scan sessions.")] = 2,
    scale: Annotated[
        float, typer.Option(help="Size of the volume and the images along each side, relative to the real ones.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed of images, tuning and noise.")] = 0,
) -> None:
    """Write a small simulated subject in the layout of the Natural Scenes Dataset, to try kind = "nsd" on.

    Example: leanrecon simulate-nsd small_nsd --sessions 2
    """
    from leanrecon.datasets.nsd.simulate import simulate_nsd as write

    write(folder, subject=subject, sessions=sessions, scale=scale, seed=seed, progress=progress())
    say(f"wrote {folder}; use it with")
    say(f"  leanrecon run nsd --set dataset.root={folder} --set dataset.sessions={sessions}", nl=False)
    say(f" --set dataset.captions={folder / 'COCO_73k_annots_curated.npy'} --until dataset")


@app.command("simulate-miyawaki")
def simulate_miyawaki(
    folder: Annotated[Path, typer.Argument(help="Folder to write the simulated subject into.")],
    scale: Annotated[float, typer.Option(help="Size of the volume along each side, relative to the real one.")] = 1.0,
    random_runs: Annotated[int, typer.Option(help="Runs of 22 random patterns, up to 20.")] = 20,
    figure_runs: Annotated[int, typer.Option(help="Runs of ten figures or letters, up to 12.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of patterns, receptive fields and noise.")] = 0,
) -> None:
    """Write a simulated subject in the layout of nilearn's fetch_miyawaki2008, to try kind = "miyawaki" on.

    Example: leanrecon simulate-miyawaki small_miyawaki --scale 0.5
    """
    from leanrecon.datasets.layouts.miyawaki_simulate import simulate_miyawaki as write

    write(folder, scale=scale, random_runs=random_runs, figure_runs=figure_runs, seed=seed, progress=progress())
    say(f"wrote {folder}; use it with")
    say(f"  leanrecon run miyawaki --set dataset.root={folder}")
