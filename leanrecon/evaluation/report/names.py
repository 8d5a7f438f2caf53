"""What the report calls every metric and every set of figures, what they mean, and how their numbers are written."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


_METRICS = (
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
        "Structural similarity along each column of pixels alone, as an old library computed it for many published "
        "tables. Compare it with those only.",
    ),
    Metric("ssim_rgb", "SSIM, by colour", "SSIM RGB", "Structural similarity of red, green and blue alone, averaged."),
    Metric("ssim_7x7", "SSIM, 7 × 7 windows", "SSIM 7×7", "Structural similarity in square windows of seven pixels."),
    Metric(
        "mse",
        "Mean squared error",
        "Error",
        "The mean squared difference of the pixels: 0 is the same image, lower is better.",
        lower_is_better=True,
    ),
    Metric(
        "accuracy",
        "Pixel accuracy",
        "Pixels right",
        "The share of pixels that are lit in both images or dark in both. Read it beside the constant images: where few "
        "pixels are lit, an image that is all dark is right in most of them.",
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
        "Variance explained, all features together",
        "R² total",
        "The share of the variance of all features together that is predicted: features that vary more count more.",
    ),
    Metric(
        "latent_r_mean",
        "Correlation, mean over features",
        "r",
        "Pearson's r of each predicted feature with the true one over the test images, averaged over features.",
    ),
)
METRICS = {metric.key: metric for metric in _METRICS}
"""The metrics that are not by a judge; those by judges are named from their keys."""

_KINDS = ("two_way", "top1_of_300", "top5_of_300", "top1", "distance", "mse", "way50", "perceptual")
_ORDER = (
    "pixcorr",
    "ssim",
    "ssim_1d",
    "ssim_7x7",
    "ssim_rgb",
    "mse",
    "accuracy",
    "PIXELS",
    "JUDGES",
    "latent_r2_mean",
    "latent_r2_total",
    "latent_r_mean",
)
_SPELLED = {"clip": "CLIP", "dinov2": "DINOv2", "swav": "SwAV", "lpips": "LPIPS", "dists": "DISTS", "vgg": "VGG", "alexnet2": "AlexNet(2)",
            "alexnet5": "AlexNet(5)", "inception": "Inception-v3", "efficientnet": "EfficientNet-B1"}  # fmt: skip


def metric(key: str) -> Metric:
    """How a metric is shown; one that is not known here goes by its key."""
    if key in METRICS:
        return METRICS[key]
    for kind in _KINDS:
        if key.startswith(f"{kind}_"):
            return _by_judge(key, kind, key.removeprefix(f"{kind}_"))
    forward = METRICS.get(key.removesuffix("_reverse"))
    name = f"{forward.name}, reverse" if forward else _sentence(key)
    return Metric(
        key,
        name,
        f"{forward.short} rev." if forward else key.replace("_", " "),
        forward.meaning if forward else "",
        percent=key.startswith("top5"),
        lower_is_better=key.endswith(("mse", "lpips", "error")),
    )


def _by_judge(key: str, kind: str, judge: str) -> Metric:
    """A metric by pixels, by features, or by a judge."""
    reverse = kind not in ("distance", "mse", "perceptual") and judge.endswith("_reverse")
    judge = judge.removesuffix("_reverse") if reverse else judge
    by = _SPELLED.get(judge, judge)
    picks, out_of = ("seen image", "reconstruction") if reverse else ("reconstruction", "image")
    compared = {
        "pixels": "Compared by the correlation of pixels.",
        "features": "Compared by the correlation of features; what was predicted stands for the reconstruction.",
    }.get(judge, f"Compared by the correlation of image embeddings of the judge {by}, a network that the notes name.")
    if kind == "distance":
        meaning = (
            f"The mean of 1 − r between the embeddings, by the judge {by}, of a reconstruction and of the image seen: "
            "0 is the same, lower is better."
        )
        return Metric(key, f"Distance by {by}", f"{by} distance", meaning, lower_is_better=True)
    if kind == "mse":
        meaning = (
            f"The mean squared difference of the embeddings, by the judge {by}, of a reconstruction and of the image seen: "
            "0 is the same, lower is better."
        )
        return Metric(key, f"Perceptual error by {by}", f"{by} error", meaning, lower_is_better=True)
    if kind == "perceptual":
        meaning = (
            f"The mean perceptual distance by {by} of a reconstruction and the image seen, which was fitted to people's "
            "judgements: 0 is the same, lower is better."
        )
        return Metric(key, f"Perceptual distance by {by}", by, meaning, lower_is_better=True)
    if kind == "way50":
        meaning = (
            f"How often the judge {by}, a classifier, gives a reconstruction the class of the image seen rather than "
            "one of 49 other classes, drawn at random. 2 % by chance."
        )
        return Metric(key, f"50-way identification by {by}", f"{by} 50-way", meaning, percent=True)
    if kind in ("top1_of_300", "top5_of_300"):
        first = "nearest to" if kind[3] == "1" else "among the five nearest to"
        name, short = f"Top-{kind[3]} retrieval of 300", f"top-{kind[3]} of 300"
        meaning = f"How often its own {out_of} is {first} a {picks}, among it and 299 others drawn at random."
        compared = "Compared by the cosine of predicted and true features, as MindEye does."
    elif kind == "two_way":
        name, short = "Two-way identification", "two-way"
        meaning = f"The share of pairs in which a {picks} picks out its own {out_of} from two. Half of them by chance."
    else:
        name, short = "Top-1 retrieval", "top-1"
        every = "all reconstructions" if reverse else "all test images"
        meaning = f"How often a {picks} is nearest to its own {out_of} among {every}."
    end = ", reverse" if reverse else ""
    short = f"{by[:1].upper()}{by[1:]} {short}{' rev.' if reverse else ''}"
    return Metric(key, f"{name} by {by}{end}", short, f"{meaning} {compared}", percent=True)


def in_order(keys: Iterable[str]) -> list[str]:
    """Metrics once each: the known ones in a fixed order, then the others as they came."""
    keys = list(dict.fromkeys(keys))
    return sorted(keys, key=_rank)


def _rank(key: str) -> tuple[int, int]:
    """Pixel metrics, identification by pixels, by judges in their order, features; unknown ones last."""
    kind = next((k for k, name in enumerate(_KINDS) if key.startswith(f"{name}_")), None)
    if kind is None:
        return (_ORDER.index(key), 0) if key in _ORDER else (len(_ORDER) + 1, 0)
    by = key.removeprefix(f"{_KINDS[kind]}_").removesuffix("_reverse")
    within = 2 * kind + key.endswith("_reverse")
    if by == "features":
        return len(_ORDER), within
    return (_ORDER.index("PIXELS"), within) if by == "pixels" else (_ORDER.index("JUDGES"), 0)


@dataclass(frozen=True)
class Label:
    """How one set of figures is called: the reconstruction, a baseline or an upper bound."""

    name: str
    meaning: str
    phrase: str
    """Its name within a sentence."""


LABELS = {
    "final": Label("Final image", "What was reconstructed from the brain's responses.", "the final image"),
    "stage1": Label(
        "First image",
        "Decoded from the predicted features, before refinement.",
        "the first image",
    ),
    "mean_train_image": Label(
        "Mean train image",
        "The mean of all train images, shown for every test image. Uses no brain data.",
        "the mean train image",
    ),
    "random_train_image": Label(
        "Random train image",
        "A train image drawn at random for every test image. Uses no brain data.",
        "a random train image",
    ),
    "nearest_train_image": Label(
        "Nearest train image",
        "The train image whose features are nearest to the predicted ones. Uses the brain's responses, but "
        "reconstructs nothing.",
        "the nearest train image",
    ),
    "shuffled_betas": Label(
        "Shuffled betas",
        "First images of the same decoder, trained with its betas shuffled among the images: what it makes when betas "
        "mean nothing.",
        "shuffled betas",
    ),
    "all_dark": Label(
        "All dark",
        "An image without a lit pixel, for every test image. Uses no brain data.",
        "an image that is all dark",
    ),
    "best_constant_image": Label(
        "Best constant image",
        "Each pixel as most test images have it: no one image has more pixels right. It knows the test images, and no brain.",
        "the best constant image",
    ),
    "train_majority_image": Label(
        "Train majority",
        "Each pixel as most train images have it, for every test image. Uses no brain data.",
        "the majority of the train images",
    ),
    "prior_only": Label(
        "Generator alone",
        "What the generator makes of the mean prediction, the same for every test image. Uses no brain data.",
        "the generator alone",
    ),
    "shuffled_predictions": Label(
        "Another image's prediction",
        "What the generator makes of the prediction for another test image.",
        "another image's prediction",
    ),
    "mismatched": Label(
        "Another image's target",
        "What the generator makes of the right first image and the prediction for another test image.",
        "another image's target",
    ),
    "true_features": Label(
        "Upper bound: true features",
        "First images from the true features of the test images: what the decoder would make if every prediction were "
        "perfect. It bounds the prediction, not the score: a metric that favours smooth images, as SSIM does, may "
        "still put the mean train image above it.",
        "the true features",
    ),
    "oracle": Label(
        "Upper bound: true features, refined",
        "Final images from the true features of the test images: what the generator would make if every prediction "
        "were perfect.",
        "the generator on true features",
    ),
}

WITHOUT_BRAIN = (
    "mean_train_image",
    "random_train_image",
    "shuffled_betas",
    "prior_only",
    "all_dark",
    "best_constant_image",
    "train_majority_image",
)
"""Baselines that hold nothing of how the brain responded to each test image."""


def label(key: str) -> Label:
    """How a set of figures is called; one that is not known here goes by its key."""
    return LABELS.get(key) or Label(_sentence(key), "", key.replace("_", " "))


def _sentence(key: str) -> str:
    name = key.replace("_", " ")
    return name[:1].upper() + name[1:]


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def figure(figures: Figures | None, key: str, part: str = "value") -> float | None:
    """One number of a metric's figure, None where it is missing."""
    return number(((figures or {}).get(key) or {}).get(part))
