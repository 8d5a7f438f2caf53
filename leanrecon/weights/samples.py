"""Two photographs and their ImageNet classes, by which networks are checked wherever their weights are."""

from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.stores.fingerprint import file_content

Array = np.ndarray[Any, Any]

FOLDER = Path(__file__).with_name("pictures")
"""192 pixels a side, of two photographs in the public domain (CC0): Chelsea, by Stéfan van der Walt, and a cup of
coffee, by Rachel Michetti, both from scikit-image's data."""

SHA256 = {
    "cat": "534c1ae449e7e1dbdc87d4c1e0243b1977caeb90cce4b2017c96e4d98e852452",
    "coffee": "3d1d3361f7f54f1dd14506355c456bb761fabf3f81de64b819d798dc760eb963",
}
"""The photographs, each with its file's checksum."""

CLASSES = {
    "cat": {281: "tabby", 282: "tiger cat", 283: "Persian cat", 284: "Siamese cat", 285: "Egyptian cat"},
    "coffee": {504: "coffee mug", 505: "coffeepot", 967: "espresso", 968: "cup"},
}
"""The numbers of the classes of ImageNet-1k that show what a photograph shows."""

CAPTIONS = {"cat": "a photograph of a cat", "coffee": "a cup of coffee with a spoon"}
"""A caption of each photograph."""


def photograph(name: str) -> Array:
    """One of the photographs, uint8 [192, 192, 3]; raises InputError for a file that is not as it came."""
    from PIL import Image

    path = FOLDER / f"{name}.png"
    if not path.is_file() or file_content(path) != SHA256[name]:
        raise InputError(
            f"{path} is missing or damaged",
            expected="the photographs that come with leanrecon",
            todo="install leanrecon again from where it came (pip install --force-reinstall --no-deps)",
        )
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
