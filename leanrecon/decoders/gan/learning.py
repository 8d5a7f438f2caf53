"""What the decoder ``gan`` does: it learns from train rows, and generates images row by row."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon import devices
from leanrecon.context import Context
from leanrecon.decoders.decoder import DecoderData
from leanrecon.decoders.gan import comparator, network
from leanrecon.decoders.gan.batches import TrainRows, framed
from leanrecon.decoders.gan.losses import Losses, published_factors, relative_factors
from leanrecon.decoders.gan.plan import count_held
from leanrecon.decoders.gan.reduction import Inputs, Noise, Standardised, reduced
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.decoders.gan.training import WEIGHTS, Colours, Networks, train
from leanrecon.errors import InputError
from leanrecon.images import Array, with_channels
from leanrecon.memory import buffer
from leanrecon.stores.images import ImageReader, image_shape
from leanrecon.weights.checkpoint import Folder, History
from leanrecon.weights.seeds import seeded_weights
from leanrecon.weights.tensors import TensorFile

if TYPE_CHECKING:
    from leanrecon.stores.matrix import Matrix
    from leanrecon.stores.pictures import Pictures

NETWORK = "network"

HELD, IN_TRAIN, IN_TEST = 64, 65, 66  # streams of random numbers

COMPARED = 256
"""Train images whose features tell how far a constant guess is off."""

FEW_DIFFER = 0.01
"""Share of the variance of true images below which generated ones are alike."""


class Learning:
    """One training and what it is used for."""

    def __init__(self, settings: GANSettings) -> None:
        self.settings = settings

    def learn(self, data: DecoderData, files: Folder, context: Context) -> None:
        """Train or continue, and write the network."""
        settings, seed = self.settings, context.seed
        held = held_out_rows(data.groups, settings.validation, seed)
        fit = np.setdiff1d(np.arange(data.betas.shape[0]), held)
        if len(fit) < settings.batch_size:
            raise InputError(
                f"there are {len(fit)} train rows to learn from, fewer than a batch of {settings.batch_size}",
                todo=f"set decode.batch_size to {len(fit)} or less",
            )
        betas = _betas(data.betas, settings, seed)
        inputs = reduced(betas, fit, settings)
        rows = TrainRows(inputs, data.images, data.stimulus, settings.side, settings.jitter, settings.batch_size, seed)
        device = devices.choose(context.device)
        about = _images_of(data, fit, settings)
        networks = self._networks(inputs, about, rows, seed, device)
        history, more = train(networks, rows, held, files, context)
        record = {
            "rows": len(fit), "held_out_rows": len(held), "inputs": inputs.dims, "epochs_trained": len(history.train) - 1,
            "best_epoch": history.best, "curve": history.as_dict() | {"losses": more["curves"]},
            "waited": more["waited"], "steps": rows.steps * (len(history.train) - 1), "image": about["shape"],
        }  # fmt: skip
        record["notes"] = list(troubles(history, more, noise=settings.inputs == "noise"))
        for sentence in record["notes"]:
            context.progress.say(f"{context.label or 'decode'}: {sentence}")
        self._keep(files, networks, inputs, about, record)

    def _networks(self, inputs: Inputs, about: dict[str, Any], rows: TrainRows, seed: int, device: str) -> Networks:
        settings, weights = self.settings, self.settings.weights
        with seeded_weights(seed, WEIGHTS):
            generator = network.generator(
                inputs.dims, hidden=settings.hidden, size=settings.size, width=settings.width,
                dropout=settings.dropout, voxels=inputs.betas.shape[1],
            )  # fmt: skip
            other = (
                network.discriminator(settings.side, settings.discriminator_width) if weights["adversarial"] else None
            )
        compare = None
        off, dims = 1.0, 0
        if weights["feature"]:
            compare = comparator.make(settings.comparator, device).rows_of
            off, dims = features_of(compare, rows, device)
        relative = settings.losses == "relative"
        factors = (
            relative_factors(weights, about["off"], off)
            if relative
            else published_factors(weights, settings.side, dims)
        )
        colours = Colours(about["mean"], math.sqrt(about["off"]) if relative else 1 / 255, settings.side, device)
        return Networks(generator, other, colours, Losses(**factors, compare=compare), settings, device)

    def _keep(
        self, files: Folder, networks: Networks, inputs: Inputs, about: dict[str, Any], record: dict[str, Any]
    ) -> None:
        """Write the generator over voxels: the published form, whatever inputs it learned from."""
        weights = networks.weights()
        if (best := files.find("best")) is not None and record["held_out_rows"]:
            weights = {name: best.read(name) for name in best.names}
        weights["defc7.weight"] = inputs.first_layer(weights["defc7.weight"])
        colours = {"colours": about["mean"], "unit": np.array([networks.colours.unit])}
        files.write(
            NETWORK, {**weights, **colours, "mean": inputs.betas.mean, "factor": inputs.betas.factor}, result=record
        )

    # Decoding

    def decode(self, file: TensorFile, betas: "Matrix", out: "Pictures", context: Context) -> None:
        """Generate the images that are missing by the network in ``file``."""
        import torch

        settings = self.settings
        device = devices.choose(context.device)
        known = {name: file.read(name) for name in ("mean", "factor", "colours", "unit")}
        given = Standardised(betas, known["mean"], known["factor"])
        if settings.inputs == "noise":
            given = Noise(betas, context.seed, IN_TEST)
        p, missing = betas.shape[1], out.missing()
        with torch.device("meta"):
            generator = network.generator(p, hidden=settings.hidden, size=settings.size, width=settings.width).eval()
        generator.load_state_dict(
            {name: torch.from_numpy(file.read(name)) for name in generator.state_dict()}, assign=True
        )
        generator = generator.to(device)
        colours = Colours(known["colours"], float(known["unit"][0]), settings.side, device)
        row = buffer((1, p), np.float32)
        with context.task(total=out.rows, unit="images", done=out.rows - len(missing)) as advance:
            for number in missing:
                given.read(range(number, number + 1), range(p), row)
                if not np.isfinite(row).all():
                    raise InputError(f"betas of test row {number} are NaN or infinite", expected="finite betas")
                with torch.inference_mode():
                    image = colours(generator(torch.from_numpy(row).to(device)))[0].cpu().numpy()
                out.write(number, self._framed(image, out.shape[2]))
                advance(1)
        out.finish()

    def _framed(self, image: Array, channels: int) -> Array:
        """A uint8 image of what stimuli show: a part of them is generated, whose edges are carried on."""
        levels = np.rint(np.clip(image.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)
        before = self.settings.jitter // 2
        margin = (before, self.settings.jitter - before)
        return with_channels(np.pad(levels, (margin, margin, (0, 0)), mode="edge"), channels)


def _betas(matrix: "Matrix", settings: GANSettings, seed: int) -> Standardised:
    return Noise(matrix, seed, IN_TRAIN) if settings.inputs == "noise" else Standardised.of(matrix)


def held_out_rows(groups: Iterable[str], share: float, seed: int) -> Array:
    """Rows that are held out, ascending; rows of a group stay together. Groups are drawn until there are enough."""
    labels = np.unique(np.asarray(list(groups)), return_inverse=True)[1]
    order = np.random.default_rng([seed, HELD]).permutation(int(labels.max(initial=-1)) + 1)
    sizes = np.bincount(labels, minlength=len(order))[order]
    wanted = count_held(len(labels), share)
    taken = order[np.cumsum(sizes) - sizes < wanted]
    return np.flatnonzero(np.isin(labels, taken[: max(len(order) - 1, 0)]))


def _images_of(data: DecoderData, fit: Array, settings: GANSettings) -> dict[str, Any]:
    """Mean colour of the train images that are learned from, and the mean squared error of the mean image."""
    shape, side = image_shape(data.images), settings.framed
    sums, squares, count = np.zeros((side, side, 3)), 0.0, 0
    for _, images in ImageReader(data.images).runs(np.unique(data.stimulus[fit])):
        for image in images:
            pixels = framed(image, side) / 255.0
            sums += pixels
            squares += float(np.square(pixels).mean())
            count += 1
    mean = sums / count
    off = squares / count - float(np.square(mean).mean())
    if not off > 1e-8:
        raise InputError("all train images are the same", expected="images that differ")
    return {"mean": mean.mean(axis=(0, 1)), "off": off, "shape": list(shape)}


def features_of(compare: Any, rows: TrainRows, device: str) -> tuple[float, int]:
    """Mean squared error of the mean features of some train images, and how many features there are."""
    import torch

    some = rows.inputs.fit[:COMPARED]
    sums, squares, count = np.zeros(0), 0.0, 0
    for _, shown in rows.some(some):
        with torch.no_grad():
            found = compare(torch.from_numpy(shown).to(device)).float().cpu().numpy().astype(np.float64)
        sums = found.sum(axis=0) + (sums if count else 0)
        squares += float(np.square(found).sum())
        count += len(found)
    off = squares / sums.size / count - float(np.square(sums / count).mean())
    if not (math.isfinite(off) and off > 0):
        raise InputError(
            f"the comparator's features of train images have a variance of {off}",
            expected="features that differ from image to image",
            todo='set another decode.comparator, or "none"',
        )
    return off, sums.size


def troubles(history: History, more: dict[str, Any], *, noise: bool) -> Iterator[str]:
    """Sentences about a generator or a discriminator that collapsed."""
    curves = more["curves"]
    if curves["spread"] and not noise and len(history.train) > 1 and curves["spread"][history.best] < FEW_DIFFER:
        yield (
            f"generated images of held-out rows are nearly alike ({curves['spread'][history.best]:.2%} of the variance of "
            "true ones): the generator has collapsed, or betas tell nothing of the images"
        )
    if any(curves["real"]):
        last = curves["real"][-1] + curves["generated"][-1]
        if last < 0.02:
            yield "the discriminator told all images apart in the last epoch, so that it taught the generator little"
        elif abs(last - 2 * math.log(2)) < 0.01:
            yield "the discriminator told no images apart in the last epoch, so that it taught the generator nothing"
