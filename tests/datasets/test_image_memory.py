"""Large images are decoded in the memory that was planned for them, which their headers tell."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanrecon.datasets.files.folder import FolderRows, channels_of, read_image

SIDES = (3000, 4000)
"""Height and width: 12 million pixels, as a telephone's camera gives."""

CODE = """
import sys
from pathlib import Path
from PIL import Image, ImageOps
from leanrecon.datasets.files.folder import read_image
from leanrecon.memory import PeakMemory, process_memory
small, large = map(Path, sys.argv[1:3])
read_image(small, (64, 64, 3))  # loads the library
before = process_memory()
with PeakMemory() as memory:
    read_image(large, (64, 64, int(sys.argv[3])))
print(memory.peak - before)
"""


def photograph(path: Path, mode: str, sides: tuple[int, int], *, turned: bool = False) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize(sides[::-1], Image.Resampling.BICUBIC)
    if mode == "P":
        image = image.quantize(64)
        image.info["transparency"] = 3
    elif mode != "RGB":
        image = image.convert(mode)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "turned", "channels"),
    [
        ("a.png", "RGB", False, 3),
        ("a.png", "RGB", True, 1),
        ("a.png", "RGBA", True, 3),
        ("a.png", "P", False, 3),
        ("a.tif", "CMYK", False, 3),
        ("a.bmp", "RGB", False, 3),
        ("a.webp", "RGBA", False, 3),
        ("a.webp", "RGBA", True, 3),
        ("a.tif", "CMYK", True, 3),
        ("a.jpg", "RGB", True, 3),
        ("a.png", "L", False, 3),
    ],
)
def test_decoding_stays_within_what_headers_tell(
    tmp_path: Path, name: str, mode: str, turned: bool, channels: int
) -> None:
    small = photograph(tmp_path / f"small-{name}", mode, (80, 80), turned=turned)
    large = photograph(tmp_path / name, mode, SIDES, turned=turned)
    planned = FolderRows([small, large], (64, 64, channels)).scratch
    command = [sys.executable, "-c", CODE, str(small), str(large), str(channels)]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert taken <= planned


def test_a_large_jpeg_is_planned_at_the_size_that_it_is_decoded_at(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"a.{ending}", "RGB", SIDES) for ending in ("jpg", "png")]
    assert [FolderRows([path], (64, 64, 3)).scratch for path in paths] == [32_000_000, 9 * 12_000_000]


def test_damaged_headers_are_left_to_reading(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html>404</html>")
    assert FolderRows([tmp_path / "a.png"], (64, 64, 3)).scratch == 32_000_000


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "LA"])
def test_an_image_is_the_same_as_by_a_copy_at_each_step(tmp_path: Path, mode: str) -> None:
    path = photograph(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode, (30, 40), turned=mode != "CMYK")
    image = Image.open(path)
    whole = image if mode == "CMYK" else image.transpose(Image.Transpose.ROTATE_270)
    if mode in ("RGBA", "LA", "P"):
        over = whole.convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    for channels, wanted in ((3, "RGB"), (1, "L")):
        truth = np.asarray(whole.convert(wanted)).reshape(whole.height, whole.width, channels)
        np.testing.assert_array_equal(read_image(path, truth.shape), truth)
    assert channels_of([path]) == (1 if mode == "L" else 3)
