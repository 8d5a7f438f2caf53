"""The command retrieve: the pictures of a gallery whose features are nearest to those predicted for each test row."""

import csv
import html
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError, StoreError
from leanrecon.evaluation.image_sources import StoredImages, nearest
from leanrecon.evaluation.plan import nearest_nbytes
from leanrecon.evaluation.report.thumbnails import thumbnail
from leanrecon.images import Array
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.places.files import write_whole
from leanrecon.progress import Progress
from leanrecon.stages.gallery import Gallery, cells, open_gallery
from leanrecon.stages.stage import Run
from leanrecon.stores.images import image_shape
from leanrecon.stores.matrix import as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.recipes import read_settings
from leanrecon.study.variants import variants, whole_brain
from leanrecon.validation import nearest as nearest_name

MOST_SHOWN = 1200
"""The most test rows that the page shows; the table has all of them."""

MOST = 100
"""The most pictures for each test row."""

COLUMNS = ("row", "stimulus", "rank", "picture", "r")

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fff}}
.row{{display:flex;gap:.75rem;overflow-x:auto;padding:.75rem 0;border-top:1px solid #ddd}}
figure{{margin:0;flex:none;width:8rem}} img{{width:8rem;height:8rem;object-fit:contain;background:#f2f2f2;display:block}}
figcaption{{font-size:.8rem;overflow-wrap:anywhere}} .seen{{border-right:1px solid #ddd;padding-right:.75rem}}
@media (prefers-color-scheme:dark){{body{{color:#ddd;background:#181818}}.row,.seen{{border-color:#444}}img{{background:#222}}}}
</style></head><body><h1>{title}</h1><p>{about}</p>
"""


def retrieve(
    study: LocationLike,
    gallery: Path,
    *,
    k: int = 5,
    space: str | None = None,
    out: LocationLike | None = None,
    memory: str | None = None,
    progress: Progress | None = None,
) -> tuple[Location, Location]:
    """Find the ``k`` nearest pictures of a gallery for every test row; returns the table and the page.

    Nearest are those whose features correlate best with the predicted ones. Features of the gallery
    are kept in STUDY/retrieval/, so that a stopped run continues. Raises InputError for a path that is not a gallery,
    StoreError for a study without predictions, and BudgetError before any work.
    """
    if not 1 <= k <= MOST:
        raise SettingsError(f"-k {k}", expected=f"a number of pictures from 1 to {MOST}")
    study = as_location(study)
    settings, base_dir = read_settings(study / "study.toml", memory=memory)
    run = Run(settings, Study(study), base_dir=base_dir, progress=progress or Progress())
    encoder = _space(run, space)
    whole = whole_brain(variants(run.study, settings))
    if len(whole) > 1:
        raise InputError(
            f"{study} has folds, and each predicts features of its own", todo="retrieve from a study with one split"
        )
    variant, name = whole[0], encoder.name
    predicted = Store.open(run.study.predictions(name))
    if not predicted.complete:
        raise StoreError(f"{predicted.path} is not complete", todo="finish the study with `leanrecon run`")
    if encoder.learns:
        encoder.load(run.study.fitted(name))
    stimuli = Store.open(run.study.stimuli(variant.test_split))
    context = run.context(f"retrieve {name}")
    try:
        folder = run.study.retrieval(name)
        found = open_gallery(gallery, encoder, image_shape(stimuli), folder, context)
    finally:
        encoder.release()
    context = run.context(f"retrieve {name}")
    others = as_matrix(found.features)
    context.require("retrieve", nearest_nbytes(predicted.rows, found.features.rows, others.block) + 20_000_000)
    numbers, r = nearest(as_matrix(predicted), others, k)
    target = as_location(out) if out else study / "retrieval"
    table, page = target / "retrieved.csv", target / "retrieved.html"
    write_whole(table, lambda file: _write_table(file, variant, numbers, r, found))
    seen = StoredImages(stimuli, variant.test_images)
    title = f"{Path(study.address()).name}: nearest pictures of {gallery.absolute().name}"
    write_whole(page, lambda file: _write_page(file, title, name, variant, seen, numbers, r, found, context))
    return table, page


def _space(run: Run, name: str | None) -> Any:
    """The feature space by name, or that which first images are decoded from."""
    if not run.spaces:
        raise InputError("the study goes from betas to images, and predicts no features", todo="take a study that does")
    name = name or run.settings.decoded_space
    if name is None:
        return run.first_space
    if name not in run.spaces:
        raise SettingsError(f"{name} is not a feature space of this study ({nearest_name(name, run.spaces)})")
    if run.spaces[name].inputs != "images":
        raise SettingsError(f"the feature space {name} can't describe pictures of a gallery", expected="one of images")
    return run.spaces[name]


def _write_table(file: IO[bytes], variant: Any, numbers: Array, r: Array, gallery: Gallery) -> None:
    for lines in _lines(variant, numbers, r, gallery):
        file.write(lines.encode())


def _lines(variant: Any, numbers: Array, r: Array, gallery: Gallery) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, stimulus in enumerate(variant.test_names):
        for rank, name, value in cells(numbers[i], r[i], gallery):
            writer.writerow([int(variant.test_rows[i]), stimulus, rank, name, f"{value:.6f}"])
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def _write_page(
    file: IO[bytes], title: str, space: str, variant: Any, seen: StoredImages, numbers: Array, r: Array,
    gallery: Gallery, context: Context,
) -> None:  # fmt: skip
    shown = min(len(numbers), MOST_SHOWN)
    about = (
        f"Beside each stimulus, the pictures of the gallery ({len(gallery.names)}) whose {space} features correlate "
        f"best with those predicted from betas. {shown} of {len(numbers)} test rows are shown; retrieved.csv has all."
    )
    file.write(_HEAD.format(title=html.escape(title), about=html.escape(about)).encode())
    names = variant.test_names
    with context.task(total=shown, unit="rows") as advance:
        for i in range(shown):
            file.write(b'<div class="row">')
            file.write(_figure(seen.read(i), f"seen: {names[i]}", shown * numbers.shape[1], "seen"))
            for (_, name, value), number in zip(cells(numbers[i], r[i], gallery), numbers[i].tolist(), strict=True):
                picture = gallery.picture(number)
                file.write(_figure(picture, f"{name}, r {value:.2f}", shown * numbers.shape[1], ""))
            file.write(b"</div>\n")
            advance(1)
    file.write(b"</body></html>\n")


def _figure(picture: Array | None, caption: str, rows: int, kind: str) -> bytes:
    text = html.escape(caption)
    image = "" if picture is None else f'<img src="{thumbnail(picture, rows).uri}" alt="{text}">'
    return f'<figure class="{kind}">{image}<figcaption>{text}</figcaption></figure>'.encode()
