"""Whether the decoding worked, decided from the intervals of the figures and said in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from leanrecon.evaluation.report.legend import WITHOUT_BRAIN, Figures, figure, metric, number, source

MIN_TEST_IMAGES = 10
"""Fewer test images than this say nothing: bootstrap intervals of so few are far too narrow."""

LIKENESS = ("pixcorr", "mse", "ssim")
"""What a reconstruction is compared with baselines by: the first that has a margin."""

IDENTIFICATION = ("two_way_pixels", "two_way_features")

Level = Literal["worked", "mixed", "failed", "unclear"]


@dataclass(frozen=True)
class Check:
    """One question put to the figures; ``passed`` is None where they don't answer it."""

    name: str
    passed: bool | None
    evidence: str
    than: str
    """What the reconstruction is or is not better than, within a sentence."""


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

    It worked when a reconstruction picks out its own image above chance and is nearer to it than the mean
    train image and than reconstructions from shuffled responses, each with its whole 95 % interval. Nothing
    of that is a failure, some of it is mixed, and with too few test images or figures it is unclear.
    """
    final: Figures = metrics.get("final") or metrics.get("stage1") or {}
    n_test = number(metrics.get("n_stimuli", metrics.get("n_test")))
    simulated = bool(metrics.get("simulated"))
    checks = (
        _identifies(final),
        *(_beats(baseline, metrics.get("margins") or {}) for baseline in ("mean_train_image", "shuffled_betas")),
    )
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
            "unclear", "Too few figures to say", "there are no intervals to compare with chance or a baseline.", checks
        )
    told = _told(final, metrics.get("baselines") or {})
    if all(known) and len(known) > 1:
        headline = "The decoding of this simulated subject worked" if simulated else "The decoding worked"
        return Verdict("worked", headline, f"{told}.", checks)
    if not any(known):
        headline = "No better than without a brain" if len(known) > 1 or checks[0].passed is None else "At chance"
        if simulated:
            headline += ", in a simulated subject"
        return Verdict("failed", headline, f"{told}.", checks)
    headline = "Mixed, in a simulated subject" if simulated else "Mixed"
    return Verdict("mixed", headline, f"{told}. {_balance(checks)}", checks)


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
    phrase = source(baseline).phrase
    name = f"Nearer to the image than {phrase}"
    for key in LIKENESS:
        low, high = figure(margin, key, "low"), figure(margin, key, "high")
        if low is not None and high is not None:
            shown = metric(key)
            better = high < 0 if shown.lower_is_better else low > 0
            what = {"pixcorr": "pixel correlation", "mse": "squared error", "ssim": "SSIM"}[key]
            return Check(name, better, f"{_signed(low)} to {_signed(high)} in {what}", phrase)
    return Check(name, None, "not measured", phrase)


def _told(final: Figures, baselines: Mapping[str, Figures]) -> str:
    """The figures in a sentence: identification beside chance, likeness beside the best picture without a brain."""
    said = []
    key = next((key for key in IDENTIFICATION if figure(final, key) is not None), None)
    if key is not None:
        shown = metric(key)
        value, low, high = (figure(final, key, part) for part in ("value", "low", "high"))
        chance = figure(final, key, "chance")
        assert value is not None
        beside = [] if low is None or high is None else [f"95 % interval {shown.interval(low, high, 0)}"]
        beside.append(f"chance {shown.write(0.5 if chance is None else chance, 0)}")
        said.append(
            f"a reconstruction picks out its own image from a pair in {shown.write(value, 0)} of cases "
            f"({'; '.join(beside)})"
        )
    likeness = next((key for key in LIKENESS if figure(final, key) is not None), None)
    if likeness is not None:
        value = figure(final, likeness)
        assert value is not None
        found = [figure(baselines.get(name), likeness) for name in WITHOUT_BRAIN]
        others = [other for other in found if other is not None]
        shown = metric(likeness)
        best = (min if shown.lower_is_better else max)(others, default=None)
        digits = 2 if best is None or f"{best:.2f}" != f"{value:.2f}" else 3
        verb = "and " if said else "a reconstruction "
        verb += {"pixcorr": "correlates with it at", "mse": "has a squared error of", "ssim": "has an SSIM of"}[
            likeness
        ]
        if not said:
            verb = verb.replace("with it", "with the image seen")
        sentence = f"{verb} {shown.write(value, digits)}"
        if best is not None:
            sentence += f", where the best picture without a brain reaches {shown.write(best, digits)}"
        said.append(sentence)
    return ", ".join(said) if said else "only margins over baselines were measured"


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
