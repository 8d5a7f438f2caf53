"""What every figure and every baseline is called, what it means to a reader, and how its numbers are written."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Figures = Mapping[str, Mapping[str, Any]]
"""METRIC → ``{"value", "low", "high", "chance"}``."""


@dataclass(frozen=True)
class Metric:
    """How one metric is shown."""

    key: str
    name: str
    short: str
    meaning: str
    percent: bool = False
    lower_is_better: bool = False

    def write(self, value: float, digits: int | None = None) -> str:
        """A value as text: a percentage or a plain number, with a true minus sign."""
        if self.percent:
            digits = 1 if digits is None else digits
            if digits == 0 and (99.5 <= 100 * value < 100 or 0 < 100 * value < 0.5):
                digits = 1  # 99.7 % is not all of them
            return f"{100 * value:.{digits}f} %".replace("-", "−")
        if self.lower_is_better and 0 < value < 0.01 and digits is None:
            return f"{value:.2g}"  # an error has no scale of its own
        text = f"{value:.{3 if digits is None else digits}f}"
        return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")

    def interval(self, low: float, high: float, digits: int | None = None) -> str:
        """The two ends of an interval as text, as in ``90–96 %`` or ``−0.02 to 0.13``."""
        first, last = self.write(low, digits), self.write(high, digits)
        if self.percent:
            first = first.removesuffix(" %")
        return f"{first} to {last}" if low < 0 else f"{first}–{last}"


_TWO_WAY = "The share of pairs in which a {what} picks out its own {which} from two. Half of them by chance."
_TOP1 = "How often a {what} picks out its own {which} from all test images at once."
_BY_CLIP = (
    " Compared by the correlation of image embeddings of the CLIP that the notes and the settings name (Radford et al. "
    "2021); with ViT-L/14, Brain-Diffuser's figure by CLIP (Ozcelik & VanRullen 2023)."
)

METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            "pixcorr",
            "Pixel correlation",
            "Pixel r",
            "The correlation between the pixels of a reconstruction and those of the image seen: 1 is the same image "
            "up to brightness and contrast, 0 is unrelated.",
        ),
        Metric(
            "ssim",
            "Structural similarity (SSIM)",
            "SSIM",
            "How alike local brightness, contrast and structure are: 1 is the same image. Smooth, empty images "
            "score well too, so read it beside the baselines.",
        ),
        Metric(
            "ssim_1d",
            "SSIM, along columns",
            "SSIM 1-D",
            "Structural similarity along each column of pixels alone, as an old library took it for many published "
            "tables. Compare it with those only.",
        ),
        Metric(
            "ssim_7x7",
            "SSIM, 7 × 7 windows",
            "SSIM 7×7",
            "Structural similarity in square windows of seven pixels.",
        ),
        Metric(
            "mse",
            "Mean squared error",
            "Error",
            "The mean squared difference of the pixels: 0 is the same image, lower is better.",
            lower_is_better=True,
        ),
        Metric(
            "two_way_pixels",
            "Two-way identification",
            "Two-way",
            _TWO_WAY.format(what="reconstruction", which="image") + " Compared by the correlation of pixels.",
            percent=True,
        ),
        Metric(
            "two_way_pixels_reverse",
            "Two-way, from image to reconstruction",
            "Two-way rev.",
            _TWO_WAY.format(what="seen image", which="reconstruction") + " Compared by the correlation of pixels.",
            percent=True,
        ),
        Metric(
            "top1_pixels",
            "First of all test images",
            "Top 1",
            _TOP1.format(what="reconstruction", which="image"),
            percent=True,
        ),
        Metric(
            "top1_pixels_reverse",
            "First of all reconstructions",
            "Top 1 rev.",
            _TOP1.format(what="seen image", which="reconstruction"),
            percent=True,
        ),
        Metric(
            "two_way_clip",
            "Two-way identification by CLIP",
            "CLIP two-way",
            _TWO_WAY.format(what="reconstruction", which="image") + _BY_CLIP,
            percent=True,
        ),
        Metric(
            "two_way_clip_reverse",
            "Two-way by CLIP, from image to reconstruction",
            "CLIP two-way rev.",
            _TWO_WAY.format(what="seen image", which="reconstruction") + _BY_CLIP,
            percent=True,
        ),
        Metric(
            "top1_clip",
            "First of all test images by CLIP",
            "CLIP top 1",
            _TOP1.format(what="reconstruction", which="image") + _BY_CLIP,
            percent=True,
        ),
        Metric(
            "top1_clip_reverse",
            "First of all reconstructions by CLIP",
            "CLIP top 1 rev.",
            _TOP1.format(what="seen image", which="reconstruction") + _BY_CLIP,
            percent=True,
        ),
        Metric(
            "latent_r2_mean",
            "Variance explained, mean over features",
            "R²",
            "R² of the predicted features over the test images, averaged over features: 1 is perfect, 0 is no better "
            "than predicting the mean, below 0 is worse.",
        ),
        Metric(
            "latent_r2_total",
            "Variance explained, of all features together",
            "R² total",
            "The share of the variance of all features together that is predicted: features that vary more count more.",
        ),
        Metric(
            "two_way_features",
            "Two-way identification by features",
            "Two-way feat.",
            "The share of pairs in which predicted features are nearer to those of their own image than to another's.",
            percent=True,
        ),
        Metric(
            "top1_features",
            "First of all test images by features",
            "Top 1 feat.",
            "How often predicted features are nearest to those of their own image among all test images.",
            percent=True,
        ),
    )
}


@dataclass(frozen=True)
class Source:
    """How one set of figures is named: the reconstruction, a baseline or a ceiling."""

    name: str
    meaning: str
    phrase: str


SOURCES = {
    "final": Source("Reconstruction", "What was made from the brain's responses.", "the reconstruction"),
    "stage1": Source(
        "First stage", "The first images, decoded from the predicted features before refinement.", "the first stage"
    ),
    "mean_train_image": Source(
        "Mean train image",
        "The mean of all train images, shown for every test image. No brain.",
        "the mean train image",
    ),
    "random_train_image": Source(
        "Random train image", "A train image drawn at random for every test image. No brain.", "a random train image"
    ),
    "nearest_train_image": Source(
        "Nearest train image",
        "The train image nearest to what was predicted, instead of a picture of its own.",
        "the nearest train image",
    ),
    "shuffled_betas": Source(
        "Shuffled responses",
        "The same decoder, its brain responses shuffled among the images: what it makes without their meaning.",
        "shuffled brain responses",
    ),
    "prior_only": Source(
        "Generator alone",
        "What the generator makes of the mean prediction, the same for every test image: what it brings by itself.",
        "the generator alone",
    ),
    "shuffled_predictions": Source(
        "Another image's prediction",
        "What the generator makes of what was predicted for another test image.",
        "another image's prediction",
    ),
    "true_features": Source(
        "True features",
        "Made from the true features of the test images: the best that these features allow, with no brain at all.",
        "the true features",
    ),
    "oracle": Source(
        "True features, refined",
        "What the generator makes of the true features of the test images, with no brain at all: its own ceiling.",
        "the generator on true features",
    ),
}

WITHOUT_BRAIN = ("mean_train_image", "random_train_image", "shuffled_betas", "prior_only")
"""Baselines that hold nothing of what the brain answered to each test image."""


def metric(key: str) -> Metric:
    """How a metric is shown; one that is not known here goes by its key."""
    if key in METRICS:
        return METRICS[key]
    forward = METRICS.get(key.removesuffix("_reverse"))
    if forward:
        name, short = f"{forward.name}, the other way round", f"{forward.short} rev."
        meaning = f"{forward.meaning} Here the other way round: among the predictions, for what was seen."
        return replace(forward, key=key, name=name, short=short, meaning=meaning)
    name = key.replace("_", " ")
    return Metric(
        key,
        name[:1].upper() + name[1:],
        name,
        "Two-way identification; half of them by chance." if key.startswith("two_way") else "",
        percent=key.startswith(("two_way", "top1", "top5")),
        lower_is_better=key.endswith(("mse", "lpips", "distance", "error")),
    )


def source(key: str) -> Source:
    """How a set of figures is named; one that is not known here goes by its key."""
    name = key.replace("_", " ")
    return SOURCES.get(key) or Source(name[:1].upper() + name[1:], "", name)


def in_order(keys: Iterable[str]) -> list[str]:
    """Metrics once each: the known ones in the order of the legend, then the others as they came."""
    seen = dict.fromkeys(keys)
    return [key for key in METRICS if key in seen] + [key for key in seen if key not in METRICS]


def number(value: Any) -> float | None:
    """A finite number as float; None for whatever else stands where a number should."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def figure(figures: Figures | None, key: str, part: str = "value") -> float | None:
    """One number of a metric's figure, None where it is missing."""
    return number(((figures or {}).get(key) or {}).get(part))
