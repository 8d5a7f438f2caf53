"""The training loop of the generator and the discriminator: one step of each in turn, by Adam.

Random numbers are drawn from (seed, epoch, step), so that a training that is killed and continued ends with the same
weights.
"""

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.context import Context
from leanrecon.decoders.gan.batches import TrainRows
from leanrecon.decoders.gan.losses import DISCRIMINATOR_WEIGHT, GENERATED, LEVELS, REAL, Losses, Pausing, cross_entropy
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.errors import InputError
from leanrecon.weights.averages import averaged
from leanrecon.weights.checkpoint import Folder, History, Place, load_place, save_place
from leanrecon.weights.seeds import seeded

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = np.ndarray[Any, Any]

STEP, WEIGHTS = 62, 63  # streams of random numbers

CURVES = ("image", "feature", "adversarial", "real", "generated")
"""Losses by epoch: the generator's three, weighted, and the discriminator's of real and generated images."""


class Colours:
    """From the generator's numbers to images: a mean colour and a unit, and the centre that is kept."""

    def __init__(self, mean: Array, unit: float, side: int, device: str) -> None:
        import torch

        self.mean = torch.from_numpy(np.asarray(mean, np.float32)).reshape(1, 3, 1, 1).to(device)
        self.unit, self.side = unit, side

    def __call__(self, numbers: "torch.Tensor") -> "torch.Tensor":
        """Images float32 [b, 3, side, side], 0 black and 1 white, from numbers [b, 3, size, size]."""
        import torch

        corner = (numbers.shape[2] - self.side) // 2
        centre = numbers[:, :, corner : corner + self.side, corner : corner + self.side]
        return centre.to(torch.promote_types(centre.dtype, torch.float32)) * self.unit + self.mean

    def levels(self, images: "torch.Tensor") -> "torch.Tensor":
        """Images as the discriminator sees them: less the mean colour, 255 levels from black to white, as published."""
        return (images - self.mean) * LEVELS


class Networks:
    """The generator, the discriminator beside it if there is one, and the losses that they learn by."""

    def __init__(
        self,
        generator: "nn.Module",
        discriminator: "nn.Module | None",
        colours: Colours,
        losses: Losses,
        settings: GANSettings,
        device: str,
    ) -> None:
        from torch import nn

        shown: Any = averaged(generator) if settings.average else generator
        parts = {"generator": shown} | ({"discriminator": discriminator} if discriminator is not None else {})
        self.together = nn.ModuleDict(parts).to(device)
        """All weights, as a checkpoint holds them."""
        self.learning, self.shown, self.discriminator = generator, shown, discriminator
        self.colours, self.losses, self.settings, self.device = colours, losses, settings, device

    def weights(self) -> dict[str, Array]:
        """The weights that generate, by name: averages, or those that learn."""
        found: Any = self.shown.averages() if self.settings.average else self.learning.state_dict()
        return {name: tensor.detach().cpu().numpy() for name, tensor in found.items()}

    def optimizer(self) -> "torch.optim.Optimizer":
        """Adam for both; weights of the discriminator alone decay."""
        import torch

        settings = self.settings
        groups: list[dict[str, Any]] = [{"params": list(self.learning.parameters()), "weight_decay": 0.0}]
        if self.discriminator is not None:
            groups.append({"params": list(self.discriminator.parameters()), "weight_decay": settings.weight_decay})
        return torch.optim.Adam(groups, lr=settings.learning_rate, fused=True)

    def precision(self) -> Any:
        """The precision of products and convolutions, within ``with``."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    def generate(self, x: "torch.Tensor", *, shown: bool = False) -> "torch.Tensor":
        """Images of some inputs by the weights that learn, or by those that are kept."""
        from torch.utils.checkpoint import checkpoint

        network: Any = self.shown if shown else self.learning
        with self.precision():
            again = self.settings.recompute and not shown
            numbers = checkpoint(network, x, use_reentrant=False) if again else network(x)
            images: torch.Tensor = self.colours(numbers)
        return images

    def tell(self, images: "torch.Tensor", label: int) -> Any:
        """The loss of the discriminator's answers for images of one label."""
        assert self.discriminator is not None
        with self.precision():
            return cross_entropy(self.discriminator(self.colours.levels(images)), label)


def learning_rate(settings: GANSettings, step: int, steps: int) -> float:
    """The learning rate of a step: halved at some steps, or along half a cosine to zero."""
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
    return float(settings.learning_rate * 0.5 ** sum(step >= at for at in settings.halve_at))


def train(
    networks: Networks, rows: TrainRows, held: Array, files: Folder, context: Context
) -> tuple[History, dict[str, Any]]:
    """Train from where an earlier run stopped; ``best`` in ``files`` holds the weights of the least held-out loss.

    Returns the history and what else was seen: curves by epoch, and how often each network waited. A loss that is not
    finite raises InputError with its step; the last checkpoint stays.
    """
    settings, optimizer = networks.settings, networks.optimizer()
    place = load_place(files, networks.together, optimizer) or Place(more=_nothing_yet())
    history, more, steps = place.history, place.more, rows.steps
    pausing = Pausing(*more["learning"])
    if not history.train:
        history.train.append(None)
        _validate(networks, rows, held, history, more, files)
    saved, total = time.monotonic(), settings.epochs * steps
    done = place.epoch * steps + place.step
    with context.task(total=total, unit="steps", done=done, note=lambda: note(history, more)) as advance:
        while place.epoch < settings.epochs and not _is_enough(history, settings.patience):
            for numbers, given, shown in rows.epoch(place.epoch, place.step):
                step = place.epoch * steps + place.step
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step, total)
                seen = one_step(networks, given, shown, optimizer, pausing, rows.seed, step)
                if not all(math.isfinite(value) for value in seen.values()):
                    raise _not_finite(seen, place, numbers)
                _count(more, seen, pausing)
                place.step, place.total = place.step + 1, place.total + sum(seen[name] for name in CURVES[:3])
                if place.step < steps and time.monotonic() - saved >= 60 * settings.checkpoint_minutes:
                    save_place(files, place, networks.together, optimizer)
                    saved = time.monotonic()
                advance(1)
            history.train.append(place.total / steps)
            for name in CURVES:
                more["curves"][name].append(more["sums"][name] / steps)
            more["sums"] = dict.fromkeys(CURVES, 0.0)
            place.epoch, place.step, place.total = place.epoch + 1, 0, 0.0
            _validate(networks, rows, held, history, more, files)
            if time.monotonic() - saved >= 60 * settings.checkpoint_minutes:
                save_place(files, place, networks.together, optimizer)
                saved = time.monotonic()
    return history, more


def _nothing_yet() -> dict[str, Any]:
    """What a training knows before its first step."""
    return {
        "learning": [True, True],
        "waited": {"discriminator": 0, "generator": 0},
        "sums": dict.fromkeys(CURVES, 0.0),
        "curves": {name: [] for name in CURVES} | {"spread": []},
    }


def _count(more: dict[str, Any], seen: dict[str, float], pausing: Pausing) -> None:
    """Note the losses of a step, and which networks wait after it."""
    for name, value in seen.items():
        more["sums"][name] += value
    more["learning"] = [pausing.discriminator, pausing.generator]
    more["waited"]["discriminator"] += not pausing.discriminator
    more["waited"]["generator"] += not pausing.generator


def one_step(
    networks: Networks,
    given: Array,
    shown: Array,
    optimizer: "torch.optim.Optimizer",
    pausing: Pausing,
    seed: int,
    step: int,
) -> dict[str, float]:
    """One iteration: the discriminator learns, then the generator from its answers; returns the losses by name.

    Batches are cut into parts of ``at_once`` rows, whose gradients add up to those of the batch.
    """
    import torch

    torch.manual_seed(seeded(seed, STEP, step))
    settings, discriminator = networks.settings, networks.discriminator
    parts = list(_parts(given, shown, settings, networks.device))
    seen = dict.fromkeys(CURVES, 0.0)
    networks.learning.train()
    made = [networks.generate(x) if len(parts) == 1 else None for x, _, _ in parts]
    if discriminator is not None:
        discriminator.train().requires_grad_(pausing.discriminator)
        for (x, true, share), images in zip(parts, made, strict=True):
            with torch.no_grad():
                generated = networks.generate(x) if images is None else images
            _tell_apart(networks, true, generated.detach(), share, pausing.discriminator, seen)
        if pausing.discriminator:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        discriminator.requires_grad_(False)
    fooled = 0.0
    for (x, true, share), images in zip(parts, made, strict=True):
        generated = networks.generate(x) if images is None else images
        with networks.precision():
            found = networks.losses.of_images(generated, true)
        if discriminator is not None:
            answer = networks.tell(generated, REAL)
            found["adversarial"] = networks.losses.adversarial * answer
            fooled += share * answer.item()
        whole: Any = share * sum(found.values())
        if pausing.generator:
            whole.backward()
        for name, value in found.items():
            seen[name] += share * value.item()
    if pausing.generator:
        optimizer.step()
        if settings.average:
            networks.shown.update(min(settings.average, (2 + step) / (11 + step)))
    optimizer.zero_grad(set_to_none=True)
    if discriminator is not None:
        pausing.after(seen["real"], seen["generated"], fooled)
    return seen


def _parts(
    given: Array, shown: Array, settings: GANSettings, device: str
) -> "Iterator[tuple[torch.Tensor, torch.Tensor, float]]":
    """A batch in parts of some rows: inputs with their noise, images, and the share of the batch."""
    import torch

    size = settings.at_once or len(given)
    for start in range(0, len(given), size):
        x, true = (torch.from_numpy(array[start : start + size]).to(device) for array in (given, shown))
        yield x + settings.noise * torch.randn_like(x) if settings.noise else x, true, len(x) / len(given)


def _tell_apart(
    networks: Networks,
    true: "torch.Tensor",
    generated: "torch.Tensor",
    share: float,
    learns: bool,
    seen: dict[str, float],
) -> None:
    """Add the discriminator's two losses of some images to those seen, and their gradients if it learns."""
    for name, images, label in (("real", true, REAL), ("generated", generated, GENERATED)):
        loss = networks.tell(images, label)
        seen[name] += share * loss.item()
        if learns:
            (DISCRIMINATOR_WEIGHT * share * loss).backward()


def _validate(
    networks: Networks, rows: TrainRows, held: Array, history: History, more: dict[str, Any], files: Folder
) -> None:
    """Note the loss of held-out rows (images and features) and how much generated images differ; keep the best weights.

    Without such rows, or with the adversarial loss alone, the last weights are the best.
    """
    import torch

    epoch, losses, total = len(history.validation), networks.losses, 0.0
    moments = np.zeros((2, 2, 3 * rows.side**2))  # of generated and true images: sums and sums of squares
    networks.shown.eval()
    with torch.no_grad():
        for given, shown in rows.some(held):
            true = torch.from_numpy(shown).to(networks.device)
            generated = networks.generate(torch.from_numpy(given).to(networks.device), shown=True)
            with networks.precision():
                found = losses.of_images(generated, true)
            total += sum(value.item() for value in found.values()) * len(given)
            for images, sums in zip((generated, true), moments, strict=True):
                flat = images.flatten(1).cpu().numpy().astype(np.float64)
                sums += flat.sum(axis=0), np.square(flat).sum(axis=0)
    if not len(held) or not (losses.image or losses.feature):
        history.validation.append(None)
        history.best = epoch
        return
    if not math.isfinite(total):
        raise InputError(
            f"the loss of held-out rows became {total} after epoch {epoch}",
            expected="a finite loss",
            todo="lower decode.learning_rate; the last checkpoint is kept",
        )
    history.validation.append(total / len(held))
    variance = [float((squares / len(held) - np.square(sums / len(held))).sum()) for sums, squares in moments]
    more["curves"]["spread"].append(variance[0] / variance[1] if variance[1] > 0 else 0.0)
    best = history.validation[history.best]
    if epoch == 0 or (best is not None and total / len(held) < best):
        history.best = epoch
        files.write("best", networks.weights(), epoch=epoch)


def _is_enough(history: History, patience: int) -> bool:
    return history.validation[-1] is not None and len(history.validation) - 1 - history.best >= patience


def _not_finite(seen: dict[str, float], place: Place, rows: Array) -> InputError:
    wrong = ", ".join(f"{name} {value}" for name, value in seen.items() if not math.isfinite(value))
    return InputError(
        f"a loss became NaN or infinite in epoch {place.epoch + 1}, step {place.step + 1} ({wrong}), for train rows "
        f"{', '.join(str(int(row)) for row in np.sort(rows)[:8])}, …",
        expected="finite losses",
        todo="lower decode.learning_rate, or look at these rows; the last checkpoint is kept",
    )


def note(history: History, more: dict[str, Any]) -> str:
    """The last losses in one line."""
    if len(history.train) < 2:
        return ""
    parts = [f"{name} {more['curves'][name][-1]:.3g}" for name in CURVES if any(more["curves"][name])]
    if history.validation[-1] is not None:
        parts.append(f"held-out {history.validation[-1]:.4g}, best {history.validation[history.best]:.4g}")
    waits = [name for name, learns in zip(("discriminator", "generator"), more["learning"], strict=True) if not learns]
    return ", ".join(parts + [f"the {name} waits" for name in waits])
