"""Whether the decoding worked, decided from the intervals of the figures and written as sentences."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from leanrecon.evaluation.report.names import WITHOUT_BRAIN, Figures, figure, label, metric, number

MIN_TEST_IMAGES = 10
"""With fewer test images there is no verdict: bootstrap intervals of so few are far too narrow."""

LIKENESS = ("pixcorr", "mse", "ssim")
"""A reconstruction is compared with baselines by the first of these metrics that has a margin."""

_WORDS = {"pixcorr": "pixel correlation", "mse": "squared error", "ssim": "SSIM"}

IDENTIFICATION = ("two_way_pixels", "two_way_features")

Level = Literal["worked", "mixed", "failed", "unclear"]


@dataclass(frozen=True)
class Check:
    """One question about the figures; ``passed`` is None where they don't answer it."""

    name: str
    passed: bool | None
    evidence: str
    than: str
    """What the reconstruction is compared with, within a sentence."""


@dataclass(frozen=True)
class Verdict:
    """Whether the decoding worked: a level, the sentence that says so, and the checks behind it."""

    level: Level
    headline: str
    detail: str
    checks: tuple[Check, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.headline}: {self.detail}" if self.detail else f"{self.headline}."


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Decide from metrics.json whether the decoding worked.

    It worked when reconstructions pick out their own image above chance, and are nearer to it than the mean train
    image and than shuffled betas; each with its whole 95 % interval. None of these is a failure, some of them is
    mixed. With too few test images or figures it is unclear.
    """
    final: Figures = metrics.get("final") or metrics.get("stage1") or {}
    n_test = number(metrics.get("n_stimuli", metrics.get("n_test")))
    simulated = bool(metrics.get("simulated"))
    alone = features_alone(metrics)
    checks = _feature_checks(metrics) if alone else _image_checks(final, metrics.get("margins") or {})
    known = [check.passed for check in checks if check.passed is not None]
    if n_test is not None and n_test < MIN_TEST_IMAGES:
        images = "1 test image" if n_test == 1 else f"{n_test:.0f} test images"
        checks = tuple(replace(check, passed=None) for check in checks)
        return Verdict(
            "unclear",
            "Too few test images to say",
            f"{images} can't tell decoding from luck; {MIN_TEST_IMAGES} or more are needed.",
            checks,
        )
    if not known:
        return Verdict(
            "unclear", "Too few scores to say", "there are no intervals to compare with chance or a baseline.", checks
        )
    if alone:
        return _of_features(metrics["features"], checks, simulated)
    sentence = f"{_sentence(final, metrics.get('baselines') or {})}."
    remarks = " ".join(_remarks(metrics))
    if all(known) and len(known) > 1:
        headline = "The decoding of this simulated subject worked" if simulated else "The decoding worked"
        return Verdict("worked", headline, f"{sentence} {remarks}".rstrip(), checks)
    if not any(known):
        headline = "No better than without a brain" if len(known) > 1 or checks[0].passed is None else "At chance"
        if simulated:
            headline += ", in a simulated subject"
        return Verdict("failed", headline, f"{sentence} {remarks}".rstrip(), checks)
    headline = "Mixed, in a simulated subject" if simulated else "Mixed"
    return Verdict("mixed", headline, f"{sentence} {_balance(checks)} {remarks}".rstrip(), checks)


def features_alone(metrics: Mapping[str, Any]) -> bool:
    """Whether these are figures of predicted features alone, as of a dataset without images."""
    return bool(metrics.get("features")) and not (metrics.get("final") or metrics.get("stage1"))


def _image_checks(final: Figures, margins: Mapping[str, Any]) -> tuple[Check, ...]:
    return (_identifies(final), *(_beats(name, margins) for name in ("mean_train_image", "shuffled_betas")))


def _feature_checks(metrics: Mapping[str, Any]) -> tuple[Check, ...]:
    return tuple(
        replace(_identifies(figures or {}), name=f"Features {space} pick out their own image from a pair", than=space)
        for space, figures in metrics["features"].items()
    )


def _of_features(spaces: Mapping[str, Figures], checks: tuple[Check, ...], simulated: bool) -> Verdict:
    """The verdict of a study without images: whether predicted features tell test images apart."""
    passed = [check.passed for check in checks if check.passed is not None]
    level: Level = "worked" if all(passed) else "mixed" if any(passed) else "failed"
    headline = {
        "worked": "Features are predicted above chance",
        "mixed": "Some features are predicted above chance, others not",
        "failed": "Features are at chance",
    }[level]
    if simulated:
        headline += ", in a simulated subject"
    shown = metric("two_way_features")
    each = [
        f"{shown.write(value, 0)} of pairs by {space}"
        for space, figures in spaces.items()
        if (value := figure(figures, shown.key)) is not None
    ]
    told = f"predicted features pick out their own image in {_listed(each, 'and')}, chance {shown.write(0.5, 0)}"
    return Verdict(level, headline, f"{told}. No image was reconstructed, as the dataset has none.", checks)


def _identifies(final: Figures) -> Check:
    key = next((key for key in IDENTIFICATION if figure(final, key, "low") is not None), IDENTIFICATION[0])
    shown, name = metric(key), "Picks out its own image from a pair"
    value, low, high = (figure(final, key, part) for part in ("value", "low", "high"))
    if low is None:
        return Check(name, None, "not measured" if value is None else f"{shown.write(value)}, no interval", "chance")
    chance = figure(final, key, "chance")
    chance = 0.5 if chance is None else chance  # of two, one is right
    ends = shown.interval(low, high) if high is not None else f"from {shown.write(low)}"
    return Check(name, low > chance, f"{ends}, chance {shown.write(chance, 0)}", "chance")


def _beats(baseline: str, margins: Mapping[str, Any]) -> Check:
    margin = margins.get(baseline) or {}
    phrase = label(baseline).phrase
    name = f"Nearer to the image than {phrase}"
    for key in LIKENESS:
        low, high = figure(margin, key, "low"), figure(margin, key, "high")
        if low is not None and high is not None:
            shown = metric(key)
            better = high < 0 if shown.lower_is_better else low > 0
            return Check(name, better, f"{_signed(low)} to {_signed(high)} in {_WORDS[key]}", phrase)
    return Check(name, None, "not measured", phrase)


def _sentence(final: Figures, baselines: Mapping[str, Figures]) -> str:
    """The figures in a sentence: identification beside chance, likeness beside the best baseline without brain data."""
    parts = [part for part in (_identification(final), _likeness(final, baselines)) if part]
    if len(parts) == 2:
        return f"{parts[0]}, and {parts[1].removeprefix('a reconstruction ').replace('the image seen', 'it', 1)}"
    return parts[0] if parts else "only margins over baselines were measured"


def _identification(final: Figures) -> str:
    key = next((key for key in IDENTIFICATION if figure(final, key) is not None), None)
    if key is None:
        return ""
    shown = metric(key)
    value, low, high, chance = (figure(final, key, part) for part in ("value", "low", "high", "chance"))
    assert value is not None
    beside = [] if low is None or high is None else [f"95 % interval {shown.interval(low, high, 0)}"]
    beside.append(f"chance {shown.write(0.5 if chance is None else chance, 0)}")
    return f"a reconstruction picks out its own image from a pair in {shown.write(value, 0)} of cases ({'; '.join(beside)})"


def _likeness(final: Figures, baselines: Mapping[str, Figures]) -> str:
    key = next((key for key in LIKENESS if figure(final, key) is not None), None)
    if key is None:
        return ""
    shown, value = metric(key), figure(final, key)
    assert value is not None
    verb = {"pixcorr": "correlates with the image seen at", "mse": "has a squared error of", "ssim": "has an SSIM of"}[
        key
    ]
    others = {name: figure(baselines.get(name), key) for name in WITHOUT_BRAIN}
    known = {name: other for name, other in others.items() if other is not None}
    if not known:
        return f"a reconstruction {verb} {shown.write(value, 2)}"
    best = (min if shown.lower_is_better else max)(known, key=lambda name: known[name])
    digits = _digits(value, known[best])
    return (
        f"a reconstruction {verb} {shown.write(value, digits)}, where the best baseline without brain data, "
        f"{label(best).phrase}, reaches {shown.write(known[best], digits)}"
    )


def _remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What stands against the reconstructions: an SSIM below the mean image's, pixel metrics that refinement lowered."""
    final: Figures = metrics.get("final") or {}
    remarks = []
    ssim, mean = figure(final, "ssim"), figure((metrics.get("baselines") or {}).get("mean_train_image"), "ssim")
    if ssim is not None and mean is not None and ssim < mean:
        shown, digits = metric("ssim"), _digits(ssim, mean)
        remarks.append(
            f"Its SSIM, {shown.write(ssim, digits)}, is below that of the mean train image, {shown.write(mean, digits)}."
        )
    worse = []
    for key in LIKENESS:
        before, after = figure(metrics.get("stage1"), key), figure(final, key)
        if before is None or after is None or f"{before:.3f}" == f"{after:.3f}":
            continue
        shown, digits = metric(key), _digits(before, after)
        if (after > before) if shown.lower_is_better else (after < before):
            worse.append(f"{_WORDS[key]} from {shown.write(before, digits)} to {shown.write(after, digits)}")
    if worse:
        remarks.append(f"Refinement made pixel metrics worse: {', '.join(worse)}.")
    return remarks


def _digits(a: float, b: float) -> int:
    """Two decimals, or three where two numbers would read the same."""
    return 3 if f"{a:.2f}" == f"{b:.2f}" else 2


def _balance(checks: tuple[Check, ...]) -> str:
    better = [check.than for check in checks if check.passed]
    worse = [check.than for check in checks if check.passed is False]
    unknown = [check.than for check in checks if check.passed is None]
    if better and worse:
        sentence = f"It is better than {_listed(better, 'and')}, but not clearly better than {_listed(worse, 'or')}."
    else:
        sentence = f"It is better than {_listed(better, 'and')}."
    if unknown:
        sentence += f" It was not compared with {_listed(unknown, 'or')}."
    return sentence


def _listed(words: list[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
