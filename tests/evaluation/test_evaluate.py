"""Figures of folds that are made by hand: rows that share images, areas, judges, baselines, and the planned memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from leanrecon.context import Context
from leanrecon.errors import BudgetError, SettingsError
from leanrecon.evaluation.evaluate import evaluate
from leanrecon.evaluation.fold import Area, Fold, Predictions, RandomPairing, ShownImages
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.evaluation.plan import EvaluateShapes, most_sources, plan_evaluate, spool_nbytes
from leanrecon.evaluation.test_sets import of_test_set
from leanrecon.images import ImageShape
from leanrecon.stores import Store, as_matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.study.evaluate_settings import EvaluateSettings

Array = np.ndarray[Any, Any]

SHAPE = (12, 10, 3)
M, DIMS = 16, 8
SETTINGS = EvaluateSettings(resamples=100, permutations=2)


class Pixels:
    """A judge that describes an image by its pixels."""

    model = "pixels themselves"
    batch = 8
    dims = 12 * 10 * 3
    staying_nbytes = 0

    def __init__(self, name: str = "judge", measure: Measure = "two_way") -> None:
        self.name, self.measure, self.shown = name, measure, 0

    def work_nbytes(self, shape: ImageShape) -> int:
        return 10**5

    def made_of(self) -> dict[str, Any]:
        return {"name": self.name}

    def encode(self, images: Array) -> Array:
        self.shown += len(images)
        return images.reshape(len(images), -1).astype(np.float32)

    def release(self) -> None:
        pass


class Levels(Pixels):
    """A judge that compares two images at a time, by how far their levels differ."""

    dims, batch = 2, 4

    def __init__(self) -> None:
        super().__init__("levels", "perceptual")

    def compare(self, drawn: Array, seen: Array, pairs: Array) -> Array:
        assert len(seen) <= self.batch + 1
        found = [[apart(one, seen[k]) for k in others] for one, others in zip(drawn, pairs, strict=True)]
        return np.asarray(found, np.float32)


def apart(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def images(n: int, seed: int) -> Array:
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 5, 3))
    return np.repeat(np.repeat(coarse, 3, axis=1), 2, axis=2).astype(np.uint8)


@pytest.fixture
def fold(tmp_path: Path) -> Callable[..., Fold]:
    """A fold whose 16 test rows show 14 images and whose 40 train rows show 25."""

    def stored(name: str, rows: Array) -> Store:
        store = Store.create(tmp_path / f"{name}.zarr", rows.shape, rows.dtype, made_of={"pixels": int(rows.sum())})
        for i in range(store.row_groups):
            store.write_rows(i, rows[store.group_rows(i).start : store.group_rows(i).stop])
        store.finish()
        return store

    def drawn(name: str, rows: Array) -> Pictures:
        pictures = Pictures.create(tmp_path / name, len(rows), rows.shape[1:], made_of={})
        for row, image in enumerate(rows):
            pictures.write(row, image)
        pictures.finish()
        return pictures

    def make() -> Fold:
        rng = np.random.default_rng(1)
        seen = images(20, 0)
        index = np.array([*range(3, 17), 5, 5])
        true = rng.standard_normal((M, DIMS)).astype(np.float32)
        space = Predictions(as_matrix(true + rng.standard_normal((M, DIMS)).astype(np.float32)), as_matrix(true))
        near = (seen[index] // 2 + images(M, 2) // 2).astype(np.uint8)
        area_space = Predictions(as_matrix(rng.standard_normal((M, DIMS)).astype(np.float32)), as_matrix(true))
        return Fold(
            rows=np.arange(M),
            names=[f"image{k}" for k in index],
            test=ShownImages(stored("test", seen), index),
            train=ShownImages(stored("train", images(30, 3)), np.array([*range(2, 27), *[4] * 10, *range(10, 15)])),
            stage1=drawn("stage1", near),
            final=drawn("final", (near // 2 + seen[index] // 2).astype(np.uint8)),
            spaces={"vdvae": space},
            space="vdvae",
            train_features=as_matrix(rng.standard_normal((25, DIMS)).astype(np.float32)),
            refined={"prior": drawn("prior", images(M, 4)), "mine": drawn("mine", images(M, 7))},
            pairings=[RandomPairing(drawn(f"shuffled{k}", images(M, 5 + k)), space.true) for k in range(2)],
            upper_bounds={"true_features": drawn("oracle1", seen[index]), "oracle": drawn("oracle", seen[index])},
            areas={
                "V2": Area(7, drawn("V2", images(M, 8)), drawn("V2final", images(M, 9)), {"vdvae": area_space}),
                "V1": Area(11, drawn("V1", near), None, {"vdvae": space}),
            },
            embeddings=tmp_path / "embeddings",
        )

    return make


def parts_of(fold: Fold, *rows: list[int]) -> list[Fold]:
    """Some of its rows each, as folds of their own."""
    return [
        replace(
            of_test_set(fold, f"part{k}", np.array(index), n_trained=0, embeddings=None), test_set="",
            embeddings=None if fold.embeddings is None else Path(str(fold.embeddings)) / f"part{k}",
        )
        for k, index in enumerate(rows)
    ]  # fmt: skip


def flat(of: Array) -> Array:
    return of.reshape(len(of), -1).astype(np.float64)


def seen_by_row(fold: Fold) -> Array:
    store = fold.test.store
    rows: Array = store[0 : store.rows][fold.test.index]
    return rows


def all_of(pictures: Pictures) -> Array:
    return np.stack([pictures.read(row) for row in range(pictures.rows)])


def correlations(a: Array, b: Array) -> Array:
    return np.corrcoef(flat(a), flat(b))[: len(a), len(a) :]


def test_rows_that_share_an_image_are_compared_with_it_and_train_images_count_by_row(
    fold: Callable[..., Fold],
) -> None:
    made = fold()
    metrics = evaluate([made], SETTINGS, Context.of(seed=5)).metrics
    r = np.diag(correlations(all_of(made.stage1), seen_by_row(made)))
    assert metrics["stage1"]["pixcorr"]["value"] == pytest.approx(r.mean(), abs=1e-12)
    assert (metrics["n_test"], metrics["n_stimuli"], metrics["seed"]) == (M, 14, 5)
    train = made.train.store[0:30][made.train.index]
    mean = np.rint(train.astype(float).mean(axis=0))
    mse = np.mean([((mean - image.astype(float)) / 255) ** 2 for image in seen_by_row(made)])
    assert metrics["baselines"]["mean_train_image"]["mse"]["value"] == pytest.approx(mse, abs=1e-12)


def test_the_nearest_train_image_is_found_among_different_images(fold: Callable[..., Fold]) -> None:
    made = fold()
    metrics = evaluate([made], SETTINGS, Context.of()).metrics
    predicted, features = made.spaces["vdvae"].predicted, made.train_features
    a, b = np.empty((M, DIMS), np.float32), np.empty((25, DIMS), np.float32)
    predicted.read(range(M), range(DIMS), a)
    features.read(range(25), range(DIMS), b)
    nearest = np.arange(2, 27)[np.corrcoef(a, b)[:M, M:].argmax(axis=1)]
    shown = made.train.store[0:30][nearest]
    r = np.diag(correlations(shown, seen_by_row(made)))
    assert metrics["baselines"]["nearest_train_image"]["pixcorr"]["value"] == pytest.approx(r.mean(), abs=1e-9)


@pytest.mark.slow
def test_areas_have_figures_of_their_own_images_and_features_in_the_order_given(fold: Callable[..., Fold]) -> None:
    made = fold()
    metrics = evaluate([made], SETTINGS, Context.of(), judges=[Pixels()]).metrics
    assert list(metrics["areas"]) == ["V2", "V1"]
    assert [area["voxels"] for area in metrics["areas"].values()] == [7, 11]
    for name, area in metrics["areas"].items():
        for stage, pictures in (("stage1", made.areas[name].stage1), ("final", made.areas[name].final)):
            r = np.diag(correlations(all_of(pictures or made.areas[name].stage1), seen_by_row(made)))
            assert area[stage]["pixcorr"]["value"] == pytest.approx(r.mean(), abs=1e-12)
            assert {"low", "high", "value", "chance"} == set(area[stage]["two_way_judge"])
    # V1 is decoded to the same images from the same predictions as all voxels: all figures are the same.
    assert metrics["areas"]["V1"]["stage1"] == metrics["stage1"]
    assert metrics["areas"]["V1"]["features"] == metrics["features"]
    assert metrics["areas"]["V2"]["features"] != metrics["features"]
    without = evaluate([replace(made, areas={})], SETTINGS, Context.of(), judges=[Pixels()]).metrics
    assert "areas" not in without
    assert without["final"] == metrics["final"]
    assert not list(Path(made.embeddings or "").rglob("*V2*"))  # embeddings of areas that are gone are removed


def test_every_judge_has_metrics_of_its_name_for_every_set_of_images(fold: Callable[..., Fold]) -> None:
    made = fold()
    judges = [Pixels("one"), Pixels("two", "distance")]
    metrics = evaluate([made], SETTINGS, Context.of(), judges=judges).metrics
    assert {name: judge["measure"] for name, judge in metrics["judges"].items()} == {
        "one": "two_way",
        "two": "distance",
    }
    r = correlations(all_of(made.final), seen_by_row(made)) if made.final else None
    assert r is not None
    other = np.array(made.names)[:, None] != np.array(made.names)[None]
    wins = [np.mean(r[i, i] > r[i, other[i]]) for i in range(M)]
    assert metrics["final"]["two_way_one"]["value"] == pytest.approx(np.mean(wins))
    distance = cdist(flat(all_of(made.final)), flat(seen_by_row(made)), "correlation")  # type: ignore[arg-type]
    assert metrics["final"]["distance_two"]["value"] == pytest.approx(np.diag(distance).mean(), abs=1e-6)
    assert metrics["final"]["distance_two"]["chance"] == pytest.approx(distance[other].mean(), abs=1e-6)
    sets = {**metrics["baselines"], **metrics["upper_bounds"], "stage1": metrics["stage1"]}
    for name, figures in sets.items():
        assert {"two_way_one", "top1_one", "distance_two"} <= set(figures), name
        assert ("two_way_one_reverse" in figures) == (name != "mean_train_image")  # one image for all ties with itself
    assert sets["true_features"]["top1_one"]["value"] == 1
    assert {path.name for path in Path(made.embeddings or "").iterdir()} == {"one", "two"}


def test_a_test_set_s_images_are_told_apart_among_themselves_by_judges_too(
    fold: Callable[..., Fold], tmp_path: Path
) -> None:
    made, index = fold(), np.array([1, 4, 5, 6, 9, 12])
    chosen = of_test_set(made, "letters", index, n_trained=2, embeddings=tmp_path / "letters")
    metrics = evaluate([chosen], SETTINGS, Context.of(), judges=[Pixels("one")]).metrics
    assert made.final is not None
    r = correlations(all_of(made.final)[index], seen_by_row(made)[index])
    wins = [np.mean(r[i, i] > np.delete(r[i], i)) for i in range(len(index))]
    assert metrics["final"]["two_way_one"]["value"] == pytest.approx(np.mean(wins))
    assert metrics["n_test"] == 6
    assert "2 of 6 test rows show images that were trained on" in " ".join(metrics["notes"])
    assert (tmp_path / "letters" / "one" / "stimuli.zarr").is_dir()
    assert not Path(made.embeddings or "").exists()


@pytest.mark.slow
def test_embeddings_are_kept_by_judge_and_those_of_a_judge_that_is_gone_are_removed(fold: Callable[..., Fold]) -> None:
    made = fold()
    first, second = Pixels("one"), Pixels("two")
    evaluate([made], SETTINGS, Context.of(), judges=[first, second])
    assert first.shown == second.shown > 0
    again, new = Pixels("one"), Pixels("three")
    evaluate([made], SETTINGS, Context.of(), judges=[again, new])
    assert (again.shown, new.shown) == (0, first.shown)
    assert {path.name for path in Path(made.embeddings or "").iterdir()} == {"one", "three"}


@pytest.mark.parametrize("name", ["pixels", "features", "a/b", "", "../up"])
def test_a_judge_that_would_take_a_metric_s_name_or_leave_its_folder_is_refused(
    fold: Callable[..., Fold], name: str
) -> None:
    with pytest.raises(SettingsError, match="a judge can't be named"):
        evaluate([fold()], SETTINGS, Context.of(), judges=[Pixels(name)])


def test_a_judge_of_an_unknown_measure_is_refused(fold: Callable[..., Fold]) -> None:
    with pytest.raises(SettingsError, match=r"measures 'guess'\. Expected one of two_way, distance"):
        evaluate([fold()], SETTINGS, Context.of(), judges=[Pixels("one", "guess")])  # type: ignore[arg-type]


def test_a_decoder_without_features_has_figures_of_images_alone(fold: Callable[..., Fold]) -> None:
    made = fold()
    pairings = [RandomPairing(pairing.stage1) for pairing in made.pairings]
    bare = replace(made, spaces={}, space=None, train_features=None, areas={}, upper_bounds={}, pairings=pairings)
    result = evaluate([bare], SETTINGS, Context.of())
    assert result.metrics["features"] == {}
    assert result.latent_r2 == {}
    assert "nearest_train_image" not in result.metrics["baselines"]
    assert not [key for key in result.metrics["stage1"] if key.endswith("features")]


def test_baselines_of_a_generator_keep_its_names_where_none_is_known(fold: Callable[..., Fold]) -> None:
    metrics = evaluate([fold()], SETTINGS, Context.of()).metrics
    assert list(metrics["baselines"])[-2:] == ["prior_only", "mine"]
    assert set(metrics["margins"]) == set(metrics["baselines"])


@pytest.mark.slow
def test_nothing_is_written_but_embeddings(fold: Callable[..., Fold], tmp_path: Path) -> None:
    made = fold()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    evaluate([made], SETTINGS, Context.of(), judges=[Pixels()])
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert all(path.is_relative_to(tmp_path / "embeddings") for path in after.keys() - before.keys())
    json.dumps(evaluate([made], SETTINGS, Context.of()).metrics, allow_nan=False)


def test_too_small_a_budget_is_refused_before_any_image_is_read(fold: Callable[..., Fold]) -> None:
    made = fold()
    context = Context.of()
    work = plan_evaluate(made.shapes(), SETTINGS)
    small = replace(context.budget, allowed=context.budget.reserved + work - 1)
    made.stage1.file(0).unlink()  # reading it would fail in another way
    with pytest.raises(BudgetError, match="evaluate needs at least"):
        evaluate([made], SETTINGS, replace(context, budget=small))


def test_the_plan_grows_with_judges_areas_and_baselines() -> None:
    shapes = EvaluateShapes(images=(64, 64, 3), test_rows=900, train_images=5000, dims={"pca": 100}, chunk=10**6)
    plain = plan_evaluate(shapes, SETTINGS)
    assert most_sources(replace(shapes, areas=3), SETTINGS) == most_sources(shapes, SETTINGS) + 6
    assert most_sources(replace(shapes, refined=5), SETTINGS) == most_sources(shapes, SETTINGS) + 3
    small = 6 * 900 * 64 * 64 * 3  # their images to identify by wait on disk, their scores in memory
    assert spool_nbytes(replace(shapes, areas=3), SETTINGS) - spool_nbytes(shapes, SETTINGS) == small
    assert 6 * 900 * 8 * 8 <= plan_evaluate(replace(shapes, areas=3), SETTINGS) - plain < small / 20
    big, staying = Pixels("big"), Pixels("staying")
    big.work_nbytes = lambda shape: 10**9  # type: ignore[method-assign]
    staying.staying_nbytes = 10**8
    assert plan_evaluate(shapes, SETTINGS, [Pixels(), big]) > 10**9 + plan_evaluate(shapes, SETTINGS) - plain
    assert plan_evaluate(shapes, SETTINGS, [staying]) >= plain + 10**8


@pytest.mark.parametrize("shape", [(425, 425, 3), (28, 28, 1)])
def test_ten_thousand_test_rows_fit_into_600_mb(shape: ImageShape) -> None:
    spaces = {"vdvae": 91_168, "clip": 197_376, "text": 59_136}
    shapes = EvaluateShapes(shape, 10_000, 8859, spaces, chunk=16 * 10**6, pictures=[shape], areas=2)
    assert plan_evaluate(shapes, EvaluateSettings()) < 600 * 10**6


def test_planning_imports_neither_zarr_nor_scipy_nor_torch() -> None:
    code = "import sys, leanrecon.evaluation.plan; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"zarr", "scipy", "torch", "sklearn"}.isdisjoint(loaded)


def test_a_fold_of_one_image_takes_another_from_all_folds_for_the_chance_of_distances(
    fold: Callable[..., Fold],
) -> None:
    made = fold()
    shown, rows = [*range(3, 17), 5, 5], ([2, 14, 15], [0, 1, *range(3, 11)], [11], [12, 13])
    metrics = evaluate(parts_of(made, *rows), SETTINGS, Context.of(), judges=[Levels()]).metrics
    other = {3: 4, 4: 6, 13: 3, **{k: k + 1 for k in range(6, 13)}}  # the next one in the second fold
    other |= {5: 6, 14: 15, 15: 16, 16: 15}  # the next of all for the first and the third, and of its own for the last
    of_image = {image: seen_by_row(made)[row] for row, image in enumerate(shown)}
    drawn = all_of(made.final)  # type: ignore[arg-type]
    own = [apart(drawn[row], of_image[shown[row]]) for row in range(M)]
    wrong = [apart(drawn[row], of_image[other[shown[row]]]) for row in range(M)]
    figure = metrics["final"]["perceptual_levels"]
    assert figure["value"] == pytest.approx(np.mean([np.mean([own[row] for row in part]) for part in rows]), rel=1e-6)
    assert figure["chance"] == pytest.approx(np.mean(wrong), rel=1e-6)
