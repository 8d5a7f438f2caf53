"""A network's layer as a judge: what its settings are, how images are fed to it, and how its output describes them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.devices import choose
from leanrecon.errors import InputError, SettingsError, said_by
from leanrecon.evaluation.judges.building import Blueprint, Description, description, load, require_library
from leanrecon.evaluation.judges.feeding import Rule, feed, feeding_nbytes
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.images import Array, ImageShape, Sees
from leanrecon.places.paths import expanded
from leanrecon.stores.fingerprint import file_content
from leanrecon.weights.libraries import LIBRARY_NBYTES, exact_inference, imports_nbytes, resized
from leanrecon.weights.needs import Need
from leanrecon.weights.pickle_headers import is_archive, shapes_in
from leanrecon.weights.safetensors import read_header

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the arithmetic from images to embeddings."""

AT_ONCE_ON_CPU, AT_ONCE_ON_GPU = 4, 32
"""Images that go through a network together."""

TORCHVISION_NBYTES = 60_000_000
"""Bytes that importing torchvision takes beyond PyTorch."""

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_FLOAT = 4

Side = Annotated[int, Field(strict=True, ge=8, le=2048)]
Colours = tuple[float, float, float]


class NetworkSettings(BaseModel):
    """What the judges share that are a layer of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    layer: str = ""
    """The module whose output describes an image, by its name, as in "features.4"; "": the network's output."""
    size: Side = 224
    """The side in pixels of what the network sees."""
    through: Side | None = None
    """The side in pixels that images are brought to first, before size; absent: none."""
    resize: Literal["pillow", "tensor"] = "pillow"
    """Bilinear as Pillow does it, or as PyTorch resizes tensors without antialiasing."""
    crop: bool = False
    """Bring the shorter side to size and crop the centre, instead of both sides to size."""
    mean: Colours = IMAGENET_MEAN
    """What is subtracted from red, green and blue, from 0 to 1."""
    sd: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)] = IMAGENET_SD
    """What red, green and blue are divided by."""
    measure: Measure = "two_way"
    """two_way: identification by correlation. distance: 1 − r. mse: squared differences. classes: n-way identification by a classifier's output."""

    @property
    def rule(self) -> Rule:
        """How images become what the network sees."""
        red, green, blue = self.sd
        return Rule(self.size, self.through, self.resize, self.crop, self.mean, (red, green, blue))


class NetworkJudge:
    """A layer of a network; kinds say which network and which weights. A row is the layer's output in C order."""

    Settings: ClassVar[type[BaseModel]] = NetworkSettings
    family: ClassVar[str | None] = None
    differentiable: ClassVar[bool] = True
    """Whether gradients go through ``rows_of``."""
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision")
    unused: ClassVar[tuple[str, ...]] = ()
    """How names of weights begin that the file has and the network does not."""
    lacking: ClassVar[tuple[str, ...]] = ()
    """How names of weights begin that the network has and the file does not: of layers that are not used."""
    prefix: ClassVar[str] = ""
    """What stands before every name in the file."""

    def __init__(self, settings: Any, *, name: str, device: str = "cpu") -> None:
        self.settings = settings
        self.name = name
        self.measure: Measure = settings.measure
        self.device = choose(device)
        self._loaded: Any = None
        self._imports = imports_nbytes()  # now, as plans of later folds count the imports too

    # What a kind says

    @classmethod
    def blueprint(cls, settings: Any) -> Blueprint:
        """How the network is built."""
        raise NotImplementedError

    @classmethod
    def title(cls, settings: Any) -> str:
        """What the network and its weights are called in a report."""
        raise NotImplementedError

    def known(self) -> Description | None:
        """The layer's shape where arithmetic tells it; None: the network is built without weights to see."""
        return None

    def prove(self, path: Path) -> bool:
        """Whether a checksum proves that a file holds these weights; raises InputError where it proves others."""
        return False

    # The judge

    @classmethod
    def needs(cls, settings: Any, prefix: str) -> Iterable[Need]:
        return (Need(f"{prefix}weights", settings.weights),)

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        layer = f"layer {settings.layer}" if settings.layer else "output"
        yield f"{cls.title(settings)}, {layer}: {settings.rule.described()}."

    @property
    def model(self) -> str:
        return self.title(self.settings)

    @property
    def dims(self) -> int:
        return self._description.dims

    @property
    def batch(self) -> int:
        return AT_ONCE_ON_CPU if self.device == "cpu" else AT_ONCE_ON_GPU

    @property
    def at_once(self) -> int:
        """Images that go through the network together."""
        return self.batch

    @property
    def staying_nbytes(self) -> int:
        return sum(self.libraries.values())

    @property
    def libraries(self) -> dict[str, int]:
        """Bytes that each library takes once it was used."""
        used = {"torch": self._imports + LIBRARY_NBYTES}
        return used | ({"torchvision": TORCHVISION_NBYTES} if "torchvision" in self.packages else {})

    def check(self) -> None:
        """Raise SettingsError for a missing library or layer, InputError for weights of another network or version."""
        require_library(f"judges.{self.name}", self.packages)
        if self._description.dims < 1:
            raise SettingsError(
                f"judges.{self.name}.size = {self.settings.size} is too small for {self.model}",
                todo="leave out size, or set a larger one",
            )
        if not self._path.exists():
            raise InputError(f"there is no file {self._path}", todo=f"set judges.{self.name}.weights to where it is")
        if not self.prove(self._path):
            self._check_names()

    def work_nbytes(self, shape: ImageShape) -> int:
        work = self.at_once * (feeding_nbytes(shape, self.settings.rule) + self._description.dims * _FLOAT)
        if self.device == "cpu":
            work += self.at_once * self._description.largest * _FLOAT * 2
        # Files of before PyTorch 1.6 are not mapped; convolutions are laid out anew when they are used.
        loading = 2 * self._description.weights
        if self._path.exists() and not (self._path.suffix == ".safetensors" or is_archive(self._path)):
            loading += self._path.stat().st_size
        return work + loading

    def made_of(self) -> dict[str, Any]:
        table = self.settings.model_dump(mode="json", exclude={"weights", "version", "measure"})
        return {**table, "format": FORMAT, "weights": file_content(self._path)}

    def encode(self, images: Array) -> Array:
        """Float32 [b, dims] of uint8 images [b, height, width, channels]; grey is repeated in three colours."""
        import torch

        network = self._network()
        out = np.empty((len(images), self.dims), np.float32)
        for start in range(0, len(images), self.batch):
            part = slice(start, start + self.batch)
            seen = torch.from_numpy(np.stack([feed(image, self.settings.rule) for image in images[part]]))
            try:
                with exact_inference(self.device):
                    out[part] = network(seen.to(self.device)).float().cpu().numpy()
            except RuntimeError as error:
                raise InputError(
                    f"{self.model} can't take images of {self.settings.size} pixels: {said_by(error)}",
                    todo=f"set another judges.{self.name}.size",
                ) from error
        return out

    def rows_of(self, pixels: "Tensor") -> "Tensor":
        """Embeddings [b, dims], which gradients go through, of pixels float32 [b, 3, height, width] from 0 to 1.

        Both sides are brought to the network's size, whatever ``through``, ``resize`` and ``crop`` say.
        """
        import torch

        rule = self.settings.rule
        mean, sd = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (rule.mean, rule.sd))
        embeddings: Tensor = self._network()((resized(pixels, (rule.size, rule.size)) - mean) / sd).float()
        return embeddings

    def gradient_nbytes(self, batch: int) -> int:
        """Bytes that ``rows_of`` takes for a batch of images, with what is kept until their gradients."""
        known = description(
            self.blueprint(self.settings), self.settings.layer, self.settings.size, f"judges.{self.name}"
        )
        return self.staying_nbytes + 2 * known.weights + 6 * batch * known.largest * _FLOAT

    def release(self) -> None:
        self._loaded = None

    @property
    def sees(self) -> Sees:
        """How images become what the network sees."""
        settings = self.settings
        sides = (settings.size,) if settings.through is None else (settings.through, settings.size)
        return Sees(sides, "bilinear" if settings.resize == "pillow" else "tensor")

    @property
    def _path(self) -> Path:
        return expanded(str(self.settings.weights))

    @property
    def _description(self) -> Description:
        if (known := self.known()) is not None:
            return known
        require_library(f"judges.{self.name}", self.packages)
        return description(
            self.blueprint(self.settings), self.settings.layer, self.settings.size, f"judges.{self.name}"
        )

    def _network(self) -> Any:
        """The network up to its layer, loaded when it is first needed."""
        if self._loaded is None:
            require_library(f"judges.{self.name}", self.packages)
            self._loaded = load(
                self.blueprint(self.settings), self.settings.layer, self._path, f"judges.{self.name}", self._renamed,
                self.lacking,
            ).to(self.device)  # fmt: skip
        return self._loaded

    def _renamed(self, name: str) -> str | None:
        """The name in the network of a weight in the file; None for one that the network does not have."""
        name = name.removeprefix(self.prefix)
        return None if self.unused and name.startswith(self.unused) else name

    def _check_names(self) -> None:
        """Compare the names and shapes in the file's header with the network's, where the header can be read alone."""
        if self._path.suffix == ".safetensors":
            found: Any = {name: entry.shape for name, entry in read_header(self._path)[0].items()}
        else:
            found = shapes_in(self._path)
        if found is None:
            return  # only PyTorch can tell: it is compared when it is loaded
        expected = description(
            self.blueprint(self.settings), self.settings.layer, self.settings.size, f"judges.{self.name}"
        ).shapes
        from leanrecon.evaluation.judges.building import compare

        renamed = {new: tuple(shape) for name, shape in found.items() if (new := self._renamed(name)) is not None}
        compare(renamed, {n: tuple(s) for n, s in expected.items()}, self._path, self.lacking, self.model)
