"""Commands that take results out of studies, and compare them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanrecon.app.options import Memory, app, progress, require_free, require_study
from leanrecon.app.terminal import say
from leanrecon.errors import LeanreconError

if TYPE_CHECKING:
    from leanrecon.places import Location
    from leanrecon.stages.stage import Run


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="[figures] STUDY_OR_STORE", help="The folder or URL of a study, or of one of its stores."
        ),
    ],
    file: Annotated[Path | None, typer.Argument(help="The .npy file to write a store into.")] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--maps",
            help="areas, ncsnr, accuracy, weights:SPACE:NUMBER …; may be repeated; by default all that are known.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder of the files; by default maps/ or figures/ in the study."),
    ] = None,
    variant: Annotated[str, typer.Option("--variant", help="A fold or an area, as in fold00.")] = "",
    memory: Memory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write maps of a study in the space of its data, its figures for a paper, or a store as a .npy file.

    Examples: leanrecon export STUDY; leanrecon export figures STUDY; leanrecon export STUDY/betas/train.zarr betas.npy
    """
    from leanrecon.places import as_location
    from leanrecon.study.record import is_study

    if source == Path("figures") and file is not None and is_study(as_location(file)):
        _export_figures(file, out, overwrite)
        return
    of = as_location(source)
    if not is_study(of):
        if file is None:
            raise LeanreconError(
                f"{of} is not the folder of a study", todo="give that of a study, or a store and a .npy file"
            )
        from leanrecon.stores.export import export_npy

        require_free(file, overwrite)
        export_npy(of, file, progress=progress())
        say(f"wrote {file}")
        return
    if file is not None:
        raise LeanreconError(f"{of} is a study, not a store", todo=f"give the folder with --out {file}")
    from leanrecon.stages.export import export_maps

    folder = as_location(out) if out else of / "maps"
    for name in export_maps(_run_of(of, memory), folder, maps or (), variant, overwrite=overwrite):
        say(f"wrote {folder / name}")


def _export_figures(source: Path, out: Path | None, overwrite: bool) -> None:
    """Write scores as CSV and the plots of the report as SVG and PNG."""
    from leanrecon.places import as_location
    from leanrecon.stages.export_figures import export_figures

    study = as_location(source)
    folder = as_location(out) if out else study / "figures"
    for name in export_figures(_run_of(study, None), folder, overwrite=overwrite):
        say(f"wrote {folder / name}")


def _run_of(study: "Location", memory: str | None) -> "Run":
    """What a finished study's results are read with."""
    from leanrecon.stages.stage import Run
    from leanrecon.study.layout import Study
    from leanrecon.study.recipes import read_settings

    settings, base_dir = read_settings(study / "study.toml", memory=memory)
    return Run(settings, Study(study), base_dir=base_dir, progress=progress())


@app.command("export-nifti")
def export_nifti(
    study: Annotated[Path, typer.Argument(help="A study whose voxels have positions in a volume.")],
    vector: Annotated[Path, typer.Argument(help="A .npy file with one number for each voxel.")],
    file: Annotated[Path, typer.Argument(help="The .nii.gz file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a vector of one number for each voxel as a NIfTI volume in the subject's space.

    Example: leanrecon export-nifti results weights.npy weights.nii.gz
    """
    from leanrecon.datasets.space import export_nifti as write
    from leanrecon.study.layout import Study

    require_free(file, overwrite)
    write(Study(study), vector, file)
    say(f"wrote {file}")


@app.command()
def retrieve(
    study: Annotated[Path, typer.Argument(help="The folder or URL of a study that has predicted features.")],
    gallery: Annotated[
        Path,
        typer.Option("--gallery", metavar="FOLDER|STORE", help="Pictures: a folder, or a store of images or features."),
    ],
    k: Annotated[int, typer.Option("-k", help="Number of pictures for each test row.")] = 5,
    space: Annotated[
        str | None, typer.Option("--space", help="Feature space; by default that of first images.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the table and the page; by default retrieval/ in the study.")
    ] = None,
    memory: Memory = None,
) -> None:
    """Find the pictures of a gallery whose features are nearest to those predicted for each test row.

    Example: leanrecon retrieve results --gallery pictures -k 5
    """
    from leanrecon.stages.retrieve import retrieve as look_up
    from leanrecon.study.lock import only_run

    of = require_study(study)
    with only_run(of):
        table, page = look_up(of, gallery, k=k, space=space, out=out, memory=memory, progress=progress())
    say(f"wrote {table} and {page}")


@app.command()
def check(
    study: Annotated[Path, typer.Argument(help="The folder or URL of a study whose stage dataset is complete.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="A text file with one category for each train row.")
    ] = None,
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, help="Number of pairs of stimuli or categories to classify.")
    ] = 200,
    memory: Memory = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the results to this file.")
    ] = None,
) -> None:
    """Test whether the train betas of a study carry information about its images, before any training.

    Examples: leanrecon check results; leanrecon check results --labels categories.txt
    """
    from leanrecon.app.subjects import check as run_check

    require_study(study)
    run_check(study, labels, pairs, memory, json)


@app.command()
def compare(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Studies that were evaluated.")],
    against: Annotated[
        str | None, typer.Option("--against", metavar="TABLE", help="Published scores beside them: a name, or all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write .csv, .md or .html, by the file's ending.")
    ] = None,
) -> None:
    """Show the scores of several studies in one table: means over subjects, paired intervals, published tables.

    Examples: leanrecon compare sub-01 sub-02; leanrecon compare results --against all --out table.csv
    """
    from leanrecon.app.subjects import compare as run_compare

    run_compare(studies, against, out)
