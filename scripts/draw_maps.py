"""Draw docs/maps.png: maps of a simulated subject, exported from a study of its NIfTI files, in axial slices.

python scripts/draw_maps.py docs/maps.png
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray[Any, Any]

SCALE = 6
"""Screen pixels a voxel."""

MAPS = (
    ("areas.nii.gz", "areas"),
    ("accuracy.nii.gz", "accuracy (leave-one-out R squared, up to {:.2f})"),
    (
        "pattern-luminance-32-32.nii.gz",
        "pattern of the luminance at the centre of the image (red: positive, blue: negative)",
    ),
)
AREA_COLOURS = ((68, 119, 170), (102, 204, 238), (34, 136, 51), (204, 187, 68), (238, 102, 119))
"""Of Tol's bright scheme, which colour-blind readers can tell apart."""
OUTSIDE, PAPER, INK = (226, 226, 226), (255, 255, 255), (40, 40, 40)


def coloured(name: str, volume: Array) -> Array:
    """RGB of every voxel, uint8 [x, y, z, 3]."""
    out = np.full((*volume.shape, 3), OUTSIDE, np.uint8)
    if name.startswith("areas"):
        for number, colour in enumerate(AREA_COLOURS, start=1):
            out[volume == number] = colour
        return out
    known = np.isfinite(volume)
    largest = np.nanpercentile(np.abs(volume), 99)
    share = np.clip(np.where(known, volume, 0) / largest, -1, 1)
    up, down = np.maximum(share, 0)[..., None], np.maximum(-share, 0)[..., None]
    mixed = 255 - up * (255 - np.array([178, 24, 43])) - down * (255 - np.array([33, 102, 172]))
    out[known] = mixed[known]
    return out


def upright(image: Any) -> Array:
    """The volume with x to the right, y to the front and z up."""
    canonical: Array = np.asarray(nibabel.as_closest_canonical(image).dataobj)
    return canonical


def draw(folder: Path, slices: range) -> Image.Image:
    """A row of axial slices a map, seen from above: the front of the brain is up, its right side right."""
    font = ImageFont.load_default(13)
    rows = []
    for file, title in MAPS:
        image = nibabel.load(folder / file)
        volume = upright(image).astype(np.float64)
        tiles = coloured(file, volume)[:, ::-1, slices].transpose(2, 1, 0, 3)  # [slice, down, right, 3]
        tiles = tiles.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        strip = np.concatenate([np.pad(tile, ((0, 0), (0, 6), (0, 0)), constant_values=255) for tile in tiles], axis=1)
        row = Image.new("RGB", (strip.shape[1], strip.shape[0] + 22), PAPER)
        row.paste(Image.fromarray(strip), (0, 20))
        pen = ImageDraw.Draw(row)
        pen.text((2, 2), title.format(np.nanmax(volume)), INK, font)
        if file.startswith("areas"):
            _legend(row, folder / "areas.tsv", font)
            for k, z in enumerate(slices):
                millimetres = nibabel.as_closest_canonical(image).affine[2] @ (0, 0, z, 1)
                pen.text((k * strip.shape[1] / len(slices) + 3, 21), f"L   z = {millimetres:.0f} mm   R", INK, font)
        rows.append(row)
    page = Image.new("RGB", (rows[0].width, sum(row.height + 6 for row in rows)), PAPER)
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height + 6
    return page


def _legend(row: Image.Image, table: Path, font: Any) -> None:
    pen, x = ImageDraw.Draw(row), 80
    for line in table.read_text(encoding="utf-8").splitlines()[1:]:
        number, name = line.split("\t")
        pen.rectangle((x, 5, x + 10, 15), AREA_COLOURS[int(number) - 1])
        pen.text((x + 15, 2), name, INK, font)
        x += 28 + int(pen.textlength(name, font))


def write_maps(folder: Path) -> Path:
    """A lab's NIfTI files of a simulated subject, a study of them, and its maps."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.cortex_lab import write_cortex_lab

    import leanrecon

    write_cortex_lab(folder / "lab")
    study = leanrecon.run(str(folder / "lab" / "s.toml"), study=folder / "study", until="regression")
    study.export_maps(folder / "maps", "areas", "accuracy", "pattern:luminance:32,32")
    return folder / "maps"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        page = draw(write_maps(Path(made)), range(4, 15, 2))
    page.quantize(64, dither=Image.Dither.NONE).save(sys.argv[1], optimize=True)
