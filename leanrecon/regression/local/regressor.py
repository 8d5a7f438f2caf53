"""The regressor ``local``: a decoder a target, in blocks of targets, from voxels picked among the train rows.

Miyawaki et al. (2008) predict each patch of an image by a decoder of its own. Blocks are written as soon as they are
there, so that a run that is killed continues with the next one.
"""

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import buffer
from leanrecon.regression import unreasonable
from leanrecon.regression.local.estimators import TURNED, Betas, make_estimator
from leanrecon.regression.local.plan import BLOCK, plan_local
from leanrecon.regression.local.settings import BATCHED, LocalSettings
from leanrecon.regression.local.stack import ALONE, FOLDS, Fitted, fit_ridge, shares_of, targets_of
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.regressor import Output, RegressionData, RegressionPlan, RegressionShapes
from leanrecon.regression.ridge.regressor import RidgeRegressor
from leanrecon.regression.ridge.settings import RidgeSettings

if TYPE_CHECKING:
    from leanrecon.places import Location
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

FOLDER = "blocks"
"""The folder of predictions by target, beside the store that they go to, until all are there."""

_PANEL = 256  # rows that are read at once


class LocalRegressor:
    """A decoder for every target, each from voxels of its own."""

    Settings: ClassVar[type[BaseModel]] = LocalSettings

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings
        ridge = RidgeSettings(alpha=settings.alpha, standardize=settings.standardize)
        self._ridge = RidgeRegressor(ridge)

    @classmethod
    def notes(cls, settings: LocalSettings, space: str) -> Iterable[str]:
        if settings.estimator == "bayesian_ridge" and settings.voxels is None:
            yield (
                f"Predictions of {space} by BayesianRidge: with fewer rows than voxels and targets without noise its "
                "evidence takes all noise away, and it equals ordinary least squares."
            )

    def made_of(self) -> dict[str, Any]:
        return self.settings.model_dump(exclude_none=True, exclude={"workers"})

    def plan(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        settings = self.settings
        _check_voxels(settings, shapes.p)
        if settings.estimator == "ridge":
            return self._ridge.plan(shapes, free)
        ridge = self._ridge.plan(_with_folds(shapes), free)
        work, workers = plan_local(shapes, settings, free)
        scratch = shapes.t * shapes.m * 4
        if settings.estimator == "auto":
            work, scratch = work + ridge.work, scratch + ridge.scratch
        summary = f"{shapes.t} decoders by {settings.estimator}, {BLOCK} targets a block, {workers} at a time"
        return RegressionPlan(work=work, summary=summary, scratch=scratch)

    def predict(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill the stores of all outputs, and finish them; returns what run.json keeps."""
        settings = self.settings
        if settings.estimator == "ridge":
            return self._ridge.predict(data, outputs, context, shared) | self._record()
        shared.clear()  # a ridge's factor would lie beside the betas
        _check_voxels(settings, data.betas.shape[1])
        workers = self._require(data, context)
        if settings.estimator not in (*BATCHED, "auto"):
            make_estimator(settings, context.seed)  # refused before anything is read
        for sentence in _odd(data):
            context.progress.say(f"{context.label}: {sentence}")
        constant = _constant_targets(data)
        fitted, stacked = self._fitted(data, outputs, context)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for output in outputs:
                if not output.store.complete:
                    _fill(fitted, output, context, workers)
        unfinished = sum("onverge" in str(one.message) for one in caught)
        if unfinished:
            context.progress.say(
                f"{context.label}: {unfinished} decoders did not converge (raise max_iter in regression.options)"
            )
        return {
            **self._record(),
            **stacked,
            "constant_targets": constant,
            "voxels_left_out": data.betas.shape[1] - fitted.betas.voxels,
            **({"not_converged": unfinished} if unfinished else {}),
        }

    def _record(self) -> dict[str, Any]:
        return {"settings": self.settings.model_dump(exclude_none=True)}

    def _fitted(
        self, data: RegressionData, outputs: Sequence[Output], context: Context
    ) -> tuple[Fitted, dict[str, Any]]:
        """What predicts a block of targets, and what the record keeps of the shares of several estimators."""
        settings = self.settings
        if settings.estimator != "auto":
            betas = read_betas(data, settings)
            return Fitted(settings, betas, data, {ALONE: 1.0}, seed=context.seed), {}
        store = outputs[0].store
        learned = store.notes.get("learned") or shares_of(data, settings, read_betas, context)
        store.note(learned=learned)  # a run that is killed after this does not learn them again
        shares = {name: share for name, share in learned["shares"].items() if share > 0}
        said = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        context.progress.say(f"{context.label}: shares of the estimators: {said}")
        ridge = None
        if "ridge" in shares:
            shuffled = any(output.pairing is not None for output in outputs)
            ridge = fit_ridge(data, settings, context, shuffled=shuffled)
        return Fitted(settings, read_betas(data, settings), data, shares, ridge, context.seed), dict(learned)

    def _require(self, data: RegressionData, context: Context) -> int:
        """Ask for the memory of the work; returns the threads that fit."""
        plan, workers = plan_local(_shapes(data), self.settings, context.budget.free)
        if self.settings.estimator == "auto":
            plan += self._ridge.plan(_with_folds(_shapes(data)), context.budget.free).work
        context.require(context.label or "local decoders", plan)
        return workers


def _fill(fitted: Fitted, output: Output, context: Context, workers: int) -> None:
    """Predict every target of one output, block by block."""
    from leanrecon.stores.store import Store

    store = output.store
    m, t = store.shape
    blocks = Store.create(
        _folder(store) / store.path.stem,
        (t, m),
        np.float32,
        made_of={"predictions": store.made_of},
        chunk=BLOCK * m * 4,
        overwrite=True,  # of other settings, nothing is worth keeping
    )
    order, ridge = None, fitted.ridge
    if output.pairing is not None:  # the ridge draws the same order
        seed = [context.seed, output.pairing]
        order = np.random.default_rng(seed).permutation(fitted.data.betas.shape[0])
        ridge = None if ridge is None else ridge.shuffled(seed)

    def work(i: int) -> None:
        group = blocks.group_rows(i)
        parts = [range(start, min(start + BLOCK, group.stop)) for start in range(group.start, group.stop, BLOCK)]
        blocks.write_rows(i, np.concatenate([fitted.predict(part, order, ridge).T for part in parts]))

    missing = blocks.missing_row_groups()
    done = blocks.row_groups - len(missing)
    with (
        context.task(total=blocks.row_groups, unit="blocks", done=done) as advance,
        ThreadPoolExecutor(workers, thread_name_prefix="local") as pool,
    ):
        try:
            for _ in pool.map(work, missing):
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _transpose(blocks, store)
    _folder(store).delete_tree()
    store.finish()


def _constant_targets(data: RegressionData) -> int:
    """How many targets are constant over the train rows; raises InputError where all are, or where one is NaN."""
    t, constant = data.targets.shape[1], 0
    for start in range(0, t, BLOCK):
        columns = range(start, min(start + BLOCK, t))
        Y = targets_of(data, columns)
        bad = np.flatnonzero(~np.isfinite(Y).all(axis=0))
        if len(bad):
            raise InputError(
                f"target column {columns[int(bad[0])]} holds NaN or infinite values", expected="finite targets"
            )
        constant += int((Y.min(axis=0) == Y.max(axis=0)).sum())
    if constant == t:
        raise InputError(
            f"all {t} targets are constant over the {data.betas.shape[0]} train rows", expected="images that differ"
        )
    return constant


def _odd(data: RegressionData) -> list[str]:
    """What is odd about train or test betas, in sentences."""
    of_train = moments(data.betas)
    found = [unreasonable.left_out(of_train)] if not of_train.usable.all() else []
    return [*found, *unreasonable.of_train(data.betas, of_train), *unreasonable.of_test(data.test, of_train)]


def _transpose(blocks: "Store", store: "Store") -> None:
    """Write the columns that a store [m, t] lacks from predictions by target [t, m]."""
    for j in store.missing_column_groups():
        columns = store.group_columns(j)
        part = buffer((store.rows, len(columns)), np.float32)
        first, last = columns.start // blocks.chunk_rows, -(-columns.stop // blocks.chunk_rows)
        memory = buffer((blocks.buffer_nbytes(),), np.uint8)
        for i in range(first, last):
            own = blocks.group_rows(i)
            a, b = max(own.start, columns.start), min(own.stop, columns.stop)
            for k in range(blocks.column_groups):
                rows = blocks.group_columns(k)
                read = blocks.read_chunk(i, k, memory)[a - own.start : b - own.start, : len(rows)]
                part[rows.start : rows.stop, a - columns.start : b - columns.start] = read.T
        store.write_columns(j, part)


def read_betas(data: RegressionData, settings: LocalSettings) -> Betas:
    """Train and test betas less the train means, in the voxels that vary over train rows."""
    from leanrecon.stores.matrix import ColumnSubset

    train, test = data.betas, data.test
    of_train = moments(train)
    if not of_train.usable.any():
        raise InputError(
            f"none of the {train.shape[1]} voxels varies over the {train.shape[0]} train rows",
            expected="betas that vary",
        )
    if not of_train.usable.all():
        kept = np.flatnonzero(of_train.usable)
        train, test = ColumnSubset(train, kept), ColumnSubset(test, kept)
        of_train = moments(train)
    _check_voxels(settings, train.shape[1])
    X, T = (_read(Centred(matrix, of_train, scale=settings.standardize)) for matrix in (train, test))
    bad = np.flatnonzero(~np.isfinite(T).all(axis=1))
    if len(bad):
        raise InputError(f"test betas hold NaN or infinite values in row {bad[0]}", expected="finite betas")
    betas = Betas(X, T, X.shape[1])
    turned = settings.estimator in TURNED and settings.voxels is None
    return betas.turned_to_rows() if turned else betas


def _read(betas: Centred) -> Array:
    n, p = betas.shape
    whole = buffer((n, p), np.float64)
    memory = buffer((min(_PANEL, n) * p * 8,), np.uint8)
    for start in range(0, n, _PANEL):
        rows = range(start, min(start + _PANEL, n))
        whole[rows.start : rows.stop] = betas.read(rows, range(p), memory, np.float64)
    return whole


def _folder(store: "Store") -> "Location":
    return store.path.parent / FOLDER


def _check_voxels(settings: LocalSettings, p: int) -> None:
    for key in ("voxels", "nonzero"):
        wanted = getattr(settings, key)
        used = key == "voxels" or settings.estimator == "omp"
        if used and wanted is not None and wanted > p:
            raise SettingsError(
                f"regression.{key} = {wanted}, and there are {p} voxels that vary",
                expected=f"a number up to {p}",
                todo=f"set regression.{key} = {p} or less",
            )


def _with_folds(shapes: RegressionShapes) -> RegressionShapes:
    """Shapes whose test rows are as many as the rows of a fold, where those are more."""
    repeats = -(-shapes.n // max(shapes.s, 1))
    return replace(shapes, m=max(shapes.m, -(-shapes.n // FOLDS) + repeats))


def _shapes(data: RegressionData) -> RegressionShapes:
    (n, p), (s, t) = data.betas.shape, data.targets.shape
    subset = type(data.betas).__name__ != "StoreMatrix"
    return RegressionShapes(n, p, data.test.shape[0], s, t, data.betas.block, data.targets.block, subset=subset)
