"""Several studies in one table: their figures, means over those of one protocol, paired differences, published figures.

Means are those that papers print: of the studies' own figures, each study counting alike. Figures of different
protocols are never averaged, and stand under headings of their own, published ones too. Intervals resample test images:
the same draw for all studies where they have the same test images, a draw of each study's own otherwise. Of several test
sets in one study the first is compared. Top-1 among all test images is averaged and subtracted only where these are as many.
"""

import csv
import io
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError, SettingsError
from leanrecon.evaluation.bootstrap import LEVELS, Resampling, numbered
from leanrecon.evaluation.same_pictures import another_picture
from leanrecon.places import seals
from leanrecon.places.files import read_record, unreadable
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.study.layout import Study
from leanrecon.study.protocols import PROTOCOLS
from leanrecon.validation import nearest

Array = np.ndarray[Any, Any]
Figure = tuple[float, float | None, float | None]
"""A value and its 95 % interval; None where there is none."""

RESAMPLES = 1000
SEED = 0
"""Of the resamples."""
FEWEST_COMMON = 2
"""Common test images that a paired difference needs."""

_AMONG_ALL = re.compile(r"top1_(?!of_)")
"""Scores that say how often an image is found among all test images."""

PUBLISHED = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    kind: str
    """study, mean, difference or published."""
    protocol: str
    images: int | None
    figures: Mapping[str, Figure]
    heading: str
    """The protocol that the figures stand under: its name, or in words where a study departs from all that have names."""
    source: str = ""


@dataclass(frozen=True)
class Comparison:
    """The whole table."""

    metrics: list[str]
    lines: list[Line]
    notes: list[str]
    folders: list[Path]
    common: list[str] = field(default_factory=list)
    """Stimulus ids that every study tested, in the order of the first one."""

    def sections(self) -> Iterator[tuple[str, list[str], list[Line]]]:
        """Each protocol by its heading, with its metrics and its lines."""
        for heading in dict.fromkeys(line.heading for line in self.lines):
            lines = [line for line in self.lines if line.heading == heading]
            there = {metric for line in lines for metric in line.figures}
            yield heading, [metric for metric in self.metrics if metric in there], lines


@dataclass(frozen=True)
class Scored:
    """One study's test rows."""

    name: str
    folder: Path
    protocol: str
    heading: str
    """The preset, where nothing departs from it; else the protocol in words."""
    key: str
    stimuli: list[str]
    weights: Array
    """How much each row counts in the study's own figures, float64 [rows]: folds count alike, however large."""
    scores: Mapping[str, Array]
    """By metric: float64 [rows]."""
    recorded: Mapping[str, Figure]
    """Figures of metrics.json."""
    test_set: str = ""
    """The one of several test sets that the figures are of."""

    @property
    def images(self) -> int:
        """How many different images were tested."""
        return len(set(self.stimuli))

    def by_image(self) -> dict[str, dict[str, float]]:
        """The mean score of each stimulus, by metric; under "" its weight."""
        names, of_row = np.unique(self.stimuli, return_inverse=True)
        weights = np.bincount(of_row, self.weights)
        means = {m: np.bincount(of_row, self.weights * values) / weights for m, values in self.scores.items()}
        return {m: dict(zip(names.tolist(), of.tolist(), strict=True)) for m, of in {"": weights, **means}.items()}


def compare_studies(folders: Sequence[Path], *, against: str | None = None) -> Comparison:
    """Compare studies that were run to their end.

    Raises InputError for folders without figures and for a study that is named twice, SettingsError for an unknown table.
    """
    if twice := [folder for k, folder in enumerate(folders) if folder.resolve() in [f.resolve() for f in folders[:k]]]:
        raise InputError(f"{twice[0]} is named twice", expected="different studies")
    published = _published(against)
    names = _names(folders)
    scored = [_read(name, folder) for name, folder in zip(names, folders, strict=True)]
    lines = [Line(s.name, "study", s.protocol, s.images, s.recorded, s.heading) for s in scored]
    notes = [f"Of {s.name} the test set {s.test_set} is compared, its first." for s in scored if s.test_set]
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.key, []).append(one)
    for group in groups.values():
        if len(group) > 1:
            same = len({tuple(sorted(one.stimuli)) for one in group}) == 1
            name = (
                f"mean of {len(group)} studies" if len(groups) == 1 else f"mean of {', '.join(s.name for s in group)}"
            )
            images = group[0].images if same else None
            lines.append(Line(name, "mean", group[0].protocol, images, mean_figures(group), group[0].heading))
            if not same:
                notes.append(
                    f"The test images of {', '.join(s.name for s in group)} differ: each was resampled by itself."
                )
            if len({one.images for one in group}) > 1:
                notes.append("They differ in number, too: top-1 scores are neither averaged nor subtracted.")
    if len(groups) > 1:
        notes.append(f"These studies follow {len(groups)} protocols, which are not averaged or subtracted.")
    first = scored[0]
    for other in scored[1:]:
        if other.key == first.key:
            common, figures = difference(other, first)
            if figures:
                name = f"{other.name} less {first.name}"
                lines.append(Line(name, "difference", first.protocol, common, figures, first.heading))
                if (image := another_picture(Study(other.folder), Study(first.folder))) is not None:
                    notes.append(
                        f"{image} is one picture in {other.name} and another in {first.name}: their difference pairs "
                        "test images by name, and may pair different ones."
                    )
            else:
                notes.append(
                    f"{other.name} and {first.name} share {common} test images: their difference has no pairs."
                )
    lines += published
    notes += _apart(published, scored)
    metrics = list(dict.fromkeys(metric for line in lines for metric in line.figures))
    shared = [name for name in dict.fromkeys(first.stimuli) if all(name in one.stimuli for one in scored[1:])]
    return Comparison(metrics, lines, notes, list(folders), shared)


def mean_figures(group: Sequence[Scored]) -> dict[str, Figure]:
    """Means over studies, each counting alike, with 95 % intervals over test images."""
    metrics = _common(group)
    numbers = numbered([one.stimuli for one in group])
    same = len({tuple(sorted(set(one.stimuli))) for one in group}) == 1
    tables = [np.stack([one.scores[m] for m in metrics], axis=1) for one in group]
    values = np.mean([one.weights @ table for one, table in zip(group, tables, strict=True)], axis=0)
    if len(np.unique(np.concatenate(numbers))) < 2:
        return {m: (float(v), None, None) for m, v in zip(metrics, values, strict=True)}
    drawn = [
        Resampling(own, RESAMPLES, SEED, 0 if same else k).means(table, group[k].weights)
        for k, (own, table) in enumerate(zip(numbers, tables, strict=True))
    ]
    low, high = np.percentile(np.mean(drawn, axis=0), LEVELS, axis=0)
    return {m: (float(values[k]), float(low[k]), float(high[k])) for k, m in enumerate(metrics)}


def difference(one: Scored, other: Scored) -> tuple[int, dict[str, Figure]]:
    """How many test images both have, and how far ``one`` lies above ``other`` on them, paired image by image.

    An image counts as it does in the studies' own figures: by its rows, and by those of its fold.
    """
    first, second = one.by_image(), other.by_image()
    names = sorted(set(one.stimuli) & set(other.stimuli))
    metrics = _common([one, other])
    if len(names) < FEWEST_COMMON or not metrics:
        return len(names), {}
    table = np.array([[first[m][name] - second[m][name] for m in metrics] for name in names])
    weights = np.array([first[""][name] + second[""][name] for name in names])
    weights /= weights.sum()
    values = weights @ table
    drawn = Resampling(np.arange(len(names)), RESAMPLES, SEED).means(table, weights)
    low, high = np.percentile(drawn, LEVELS, axis=0)
    return len(names), {m: (float(values[k]), float(low[k]), float(high[k])) for k, m in enumerate(metrics)}


def _common(group: Sequence[Scored]) -> list[str]:
    """The metrics that all of a group have, and that do not depend on how many images were tested where these differ."""
    metrics = [m for m in group[0].scores if all(m in one.scores for one in group)]
    alike = len({one.images for one in group}) == 1
    return [m for m in metrics if alike or not _AMONG_ALL.match(m)]


def _apart(published: Sequence[Line], scored: Sequence[Scored]) -> Iterator[str]:
    """What a reader must know of published figures: which of them stand beside no study, and why."""
    if published:
        yield "Published scores are means over subjects of another study: compare them under one heading only."
    for heading in dict.fromkeys(line.heading for line in published):
        systems = ", ".join(line.name.partition(" (")[0] for line in published if line.heading == heading)
        if heading not in PROTOCOLS:
            yield f"The protocol of {systems} was not checked: no study can be judged as it was."
        elif not (own := [one for one in scored if one.heading == heading]):
            yield (
                f'No study here was judged as {systems}: set preset = "{heading}" and judges = "preset" in [evaluate], '
                "and leave out blend and folds."
            )
        else:
            n_test = PROTOCOLS[heading].n_test
            for one in own:
                if n_test not in (None, n := len(set(one.stimuli))):
                    yield f"{heading} has {n_test} test images, {one.name} {n}: shares among all images differ."


def _read(name: str, folder: Path) -> Scored:
    study = Study(folder)
    metrics = read_record(study.metrics)
    if metrics is None or not study.scores.is_file():
        raise InputError(
            f"{folder} has no scores", expected="a study that was run to its end", todo="run it with `leanrecon run`"
        )
    data = study.scores.read_bytes()
    seals.check(study.scores, data)
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        rows = [row for row in rows if row.get("subject") != "average"]
        rows = [row for row in rows if row.get("test_set", "") == metrics.get("test_set", "")]
        stimuli = [row["stimulus"] for row in rows]
        columns = [key for key in rows[0] if key.startswith("final.")] if rows else []
        columns = [key for key in columns if all(row[key] != "" for row in rows)]  # some scores lack in some folds
        scores = {key.removeprefix("final."): np.array([float(row[key]) for row in rows]) for key in columns}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise unreadable(study.scores, error) from None
    if not rows:
        raise InputError(f"{study.scores} has no test rows", todo="run the stage evaluate again with --overwrite")
    if not columns:
        raise InputError(f"{folder} has no scores of images", expected="a study with reconstructions")
    _, of_row = np.unique([row.get("fold", "") for row in rows], return_inverse=True)
    sizes = np.bincount(of_row)
    weights = 1 / (len(sizes) * sizes[of_row])
    judges = {key: (of or {}).get("content", "") for key, of in (metrics.get("judges") or {}).items()}
    about: dict[str, Any] = {"preset": metrics.get("preset"), "folds": metrics.get("folds"), "judges": judges}
    about |= {"blend": metrics.get("blend") or 0.0, "departures": sorted(metrics.get("departures") or {})}
    about["shape"] = metrics.get("shape")
    words = [str(about["preset"])]
    words += [_size_of(about["shape"])] if about["shape"] and _has_no_size(about["preset"]) else []
    words += [f"{about['blend']:.0%} of first images mixed in"] if about["blend"] else []
    words += [f"{about['folds']} folds"] if about["folds"] else []
    words += [f"with another {judge}" for judge in about["departures"]]
    heading = ", ".join(words)
    words += [f"judges {', '.join(sorted(judges))}"] if judges else []
    key, test_set = fingerprint(about), metrics.get("test_set") or ""
    return Scored(name, folder, ", ".join(words), heading, key, stimuli, weights, scores, _recorded(metrics), test_set)


def _has_no_size(preset: Any) -> bool:
    """Whether a preset compares images at whatever size they have, so that the size is part of the protocol."""
    return preset in PROTOCOLS and PROTOCOLS[preset].size is None


def _size_of(shape: Sequence[int]) -> str:
    height, width, channels = shape
    return f"{height} × {width}{' grey' if channels == 1 else ''}"


def _recorded(metrics: Mapping[str, Any]) -> dict[str, Figure]:
    final = metrics.get("final") or {}
    return {
        key: (float(of["value"]), of.get("low"), of.get("high"))
        for key, of in final.items()
        if isinstance(of, Mapping) and isinstance(of.get("value"), int | float)
    }


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; with those above them where two are alike."""
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    return [
        name if names.count(name) == 1 else f"{path.parent.name}/{name}"
        for name, path in zip(names, paths, strict=True)
    ]


def _published(against: str | None) -> list[Line]:
    """Published systems: one by its name, or all."""
    if against is None:
        return []
    tables = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))
    protocols = tables.pop("protocols")
    if against != "all" and against not in tables:
        raise SettingsError(
            f"{against} is not a table of published scores ({nearest(against, [*tables, 'all'])})",
            expected=f"one of {', '.join(tables)}, all",
        )
    return [
        Line(
            f"{of['system']} (subjects {', '.join(map(str, of['subjects']))})",
            "published",
            f"{of['protocol']}: {protocols[of['protocol']]}",
            None,
            {key: (value, None, None) for key, value in of["figures"].items()},
            of["protocol"],
            of["source"],
        )
        for name, of in tables.items()
        if against in ("all", name)
    ]
