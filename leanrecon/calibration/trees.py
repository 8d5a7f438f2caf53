"""Boosted trees as plain arrays: read from scikit-learn, predicted to the same bytes, kept without pickles.

The leaf of a sample is found without walking a tree (Lucchese et al. 2015, QuickScorer): each node whose question sends
the sample to the right rules out the leaves on its left; the first leaf that is left is the sample's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MOST_LEAVES = 15
"""Most leaves of a tree: they are the bits of a number that a table is looked up with."""


@dataclass(frozen=True)
class Trees:
    """Questions of all trees one after the other, and the values of their leaves from left to right."""

    feature: Array
    """int64 [questions], the feature that is compared"""
    threshold: Array
    """float64 [questions]; larger values go right"""
    ruled_out: Array
    """int64 [questions], the leaves on the left, as bits"""
    questions: Array
    """int64 [trees], how many questions each tree asks"""
    values: Array
    """float64 [trees, leaves], zeros after a tree's last leaf"""
    baseline: float
    """What is predicted before the first tree."""

    def arrays(self) -> dict[str, Array]:
        """All of it as arrays to be saved."""
        return {
            "feature": self.feature, "threshold": self.threshold, "ruled_out": self.ruled_out,
            "questions": self.questions, "values": self.values, "baseline": np.array([self.baseline]),
        }  # fmt: skip

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "Trees":
        feature, threshold, ruled_out, questions, values = (
            np.asarray(arrays[name]) for name in ("feature", "threshold", "ruled_out", "questions", "values")
        )
        return cls(feature, threshold, ruled_out, questions, values, float(arrays["baseline"][0]))

    def predict(self, features: Array) -> Array:
        """Predictions [samples] in float64 of features [features, samples], as scikit-learn adds them up."""
        result = np.full(features.shape[1], self.baseline)
        left = np.empty(features.shape[1], np.uint16)
        last = 0
        for asked, values in zip(self.questions.tolist(), self.values, strict=True):
            left[:] = (1 << self.values.shape[1]) - 1
            for k in range(last, last + asked):
                goes_right = features[self.feature[k]] > self.threshold[k]
                left &= np.where(goes_right, np.uint16(~self.ruled_out[k] & 0xFFFF), np.uint16(0xFFFF))
            last += asked
            result += _by_first_bit(values)[left]
        return result


def _by_first_bit(values: Array) -> Array:
    """For every set of leaves that are left, as bits, the value of the first; float64 [2^leaves]."""
    table = np.zeros(1 << len(values))
    for leaf in range(len(values)):
        table[1 << leaf :: 2 << leaf] = values[leaf]
    return table


def trees_of(grown: Any) -> Trees:
    """The trees of a fitted ``HistGradientBoostingRegressor`` of numbers without missing values."""
    feature: list[int] = []
    threshold: list[float] = []
    ruled_out: list[int] = []
    questions, leaves = [], []
    for (tree,) in grown._predictors:
        asked, values = _read(tree.nodes)
        feature += [question[0] for question in asked]
        threshold += [question[1] for question in asked]
        ruled_out += [question[2] for question in asked]
        questions.append(len(asked))
        leaves.append(values)
    table = np.zeros((len(leaves), max(map(len, leaves))))
    for row, values in zip(table, leaves, strict=True):
        row[: len(values)] = values
    return Trees(
        np.array(feature, np.int64), np.array(threshold, np.float64), np.array(ruled_out, np.int64),
        np.array(questions, np.int64), table, float(np.asarray(grown._baseline_prediction).reshape(-1)[0]),
    )  # fmt: skip


def _read(nodes: Array) -> tuple[list[tuple[int, float, int]], list[float]]:
    """The questions of a tree, as feature, threshold and leaves on the left, and its leaves from left to right."""
    asked: list[tuple[int, float, int]] = []
    values: list[float] = []

    def below(k: int) -> int:
        """The leaves below a node, as bits."""
        node = nodes[k]
        if node["is_leaf"]:
            values.append(float(node["value"]))
            return 1 << (len(values) - 1)
        left = below(int(node["left"]))
        asked.append((int(node["feature_idx"]), float(node["num_threshold"]), left))
        return left | below(int(node["right"]))

    below(0)
    return asked, values
