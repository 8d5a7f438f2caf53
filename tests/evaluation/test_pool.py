"""Folds too small to be judged by themselves: all test rows together, against double loops over pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score

from leanrecon.evaluation.identification import distances, identify
from leanrecon.evaluation.latents import compare_latents
from leanrecon.evaluation.pool import Part, Spool, Stacked, joined
from leanrecon.stores.matrix import as_matrix

Array = np.ndarray[Any, Any]

SIZES = (1, 4, 1, 3)
NAMES = list("abcdefgha")


def folds(*, rotated: bool, seed: int = 0) -> tuple[list[Array], list[Array]]:
    """Predictions of each fold, and all true rows in the fold's own features."""
    rng = np.random.default_rng(seed)
    m, d = sum(SIZES), 6
    true = rng.standard_normal((m, d))
    true[NAMES.index("a")] = true[-1]
    predicted, stimuli, at = [], [], 0
    for size in SIZES:
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0] if rotated else np.eye(d)
        predicted.append((true[at : at + size] + 0.8 * rng.standard_normal((size, d))) @ turn)
        stimuli.append(true @ turn)
        at += size
    return predicted, stimuli


def parts_of(predicted: list[Array], stimuli: list[Array]) -> list[Part]:
    firsts = np.cumsum([0, *SIZES]).tolist()
    return [Part(as_matrix(p), as_matrix(s), first, 2) for p, s, first in zip(predicted, stimuli, firsts, strict=False)]


def correlations(predicted: list[Array], stimuli: list[Array]) -> Array:
    """r of every prediction with every stimulus in the features of the prediction's fold."""
    return np.array(
        [[np.corrcoef(row, other)[0, 1] for other in s] for p, s in zip(predicted, stimuli, strict=True) for row in p]
    )


@pytest.mark.parametrize("rotated", [False, True])
def test_rows_of_all_folds_are_told_apart_in_the_features_of_their_fold(rotated: bool) -> None:
    predicted, stimuli = folds(rotated=rotated)
    r, m = correlations(predicted, stimuli), sum(SIZES)
    found = identify(parts_of(predicted, stimuli), NAMES, "x")
    assert found is not None
    for i in range(m):
        others = [j for j in range(m) if NAMES[j] != NAMES[i]]
        forward, back = [r[i, i] > r[i, j] for j in others], [r[i, i] > r[j, i] for j in others]
        assert found.rows["two_way_x"][i] == pytest.approx(np.mean(forward))
        assert found.rows["top1_x"][i] == all(forward)
        assert found.rows["two_way_x_reverse"][i] == pytest.approx(np.mean(back))
        assert found.rows["top1_x_reverse"][i] == all(back)
    wrong = [1 - r[i, j] for i in range(m) for j in range(m) if NAMES[i] != NAMES[j]]
    distance = distances(parts_of(predicted, stimuli), NAMES, "x")
    np.testing.assert_allclose(distance.rows["distance_x"], 1 - np.diag(r), atol=1e-6)
    assert distance.chance["distance_x"] == pytest.approx(np.mean(wrong), abs=1e-6)


def test_r2_over_folds_is_that_of_all_rows_where_features_are_shared() -> None:
    predicted, stimuli = folds(rotated=False)
    scores, r2 = compare_latents(parts_of(predicted, stimuli), NAMES)
    expected = r2_score(stimuli[0], np.concatenate(predicted), multioutput="raw_values")
    np.testing.assert_allclose(r2, expected, atol=1e-12)
    assert scores.rows["latent_r2_mean"].mean() == pytest.approx(expected.mean(), abs=1e-12)
    weighted = r2_score(stimuli[0], np.concatenate(predicted), multioutput="variance_weighted")
    assert scores.rows["latent_r2_total"].mean() == pytest.approx(weighted, abs=1e-12)


def test_a_latent_that_a_fold_lacks_has_the_r2_of_the_others() -> None:
    predicted, stimuli = folds(rotated=False)
    cut = [(p, s) if k != 1 else (p[:, :5], s[:, :5]) for k, (p, s) in enumerate(zip(predicted, stimuli, strict=True))]
    _, r2 = compare_latents(parts_of([p for p, _ in cut], [s for _, s in cut]), NAMES)
    rest = [i for i in range(sum(SIZES)) if not 1 <= i < 5]
    error = np.square(np.concatenate(predicted) - stimuli[0])[rest, 5].mean()
    assert r2[5] == pytest.approx(1 - error / stimuli[0][:, 5].var(), abs=1e-12)


def test_parts_with_the_same_stimuli_are_read_together_and_give_the_same() -> None:
    predicted, stimuli = folds(rotated=False)
    shared = as_matrix(stimuli[0])
    apart = parts_of(predicted, stimuli)
    together = joined([Part(part.reconstructions, shared, part.first, part.most) for part in apart])
    assert len(together) == 1
    assert len(joined(apart)) == len(SIZES)
    one, other = (identify(parts, NAMES, "x") for parts in (apart, together))
    assert one is not None
    assert other is not None
    for name, rows in one.rows.items():
        np.testing.assert_array_equal(rows, other.rows[name])


def test_spooled_rows_are_those_that_were_written(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (7, 30), np.uint8)
    with Spool(tmp_path) as spool:
        other, spooled = spool.rows(3, 5), spool.rows(7, 30)
        for k in (3, 0, 6, 1, 2, 5, 4):
            spooled.write(k, rows[k])
        other.write(2, np.zeros(5, np.uint8))
        stacked = Stacked([spooled, as_matrix(rows)])
        out = np.empty((9, 11), np.float32)
        stacked.read(range(3, 12), range(7, 18), out)
        np.testing.assert_array_equal(out, np.concatenate([rows, rows])[3:12, 7:18])
        assert list(tmp_path.iterdir()) == []  # no name that a kill could leave
