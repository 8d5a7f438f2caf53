"""The weights of a linear ridge: read block by block, or written to a store."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import SettingsError
from leanrecon.memory import MemoryBudget
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.learned import Formed
from leanrecon.regression.ridge.limits import WEIGHT_BLOCK
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan import Shapes, plan_weights
from leanrecon.regression.ridge.weights import (
    contents,
    for_measured_betas,
    lacking_targets,
    weights,
    write_weights,
)
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.matrix import Matrix, panels
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


class WeightMaps(Formed):
    """A fitted ridge that can show its weights."""

    alpha_: Any
    _train: Centred

    @property
    def _paired(self) -> Pairing:
        raise NotImplementedError

    @property
    def _kept_factor(self) -> Panels:
        raise NotImplementedError

    def _shapes(self, betas: Matrix, targets: Matrix, m: int) -> Shapes:
        raise NotImplementedError

    def weight_blocks(self, wanted: Sequence[range] | None = None) -> Iterator[tuple[range, Array, Array]]:
        """Yield ``(targets, coef [len(targets), p], intercept [len(targets)])``, 512 targets at a time.

        They apply to betas as measured: ``betas @ coef.T + intercept``, before any ``restandardize``. Voxels left out
        have weight 0.
        """
        self._check_fitted()
        if self.kernel_ != "linear":
            raise SettingsError(f"an {self.kernel_} kernel has no weights of voxels", todo='set kernel = "linear"')
        factor = self._kept_factor
        shapes = self._shapes(self.betas_, self.targets_, 1)
        self._require(MemoryBudget.of(self.budget), "the weights", plan_weights(shapes, on_disk=factor.on_disk))
        for columns in panels(self.targets_.shape[1], WEIGHT_BLOCK) if wanted is None else wanted:
            centred = weights(self._train, factor, self.targets_, columns, self._paired)
            yield columns, *for_measured_betas(*centred, self._train)

    def write_weights(self, path: str | Path, *, overwrite: bool = False) -> Store:
        """Write the weights to a store [targets, p + 1], the last column being the intercept; resumable.

        Arrays that are not stores are read once more, for a fingerprint.
        """
        self._check_fitted()
        t, p = self.targets_.shape[1], self.n_features_in_
        made_of = {
            "alpha": float(self.alpha_),
            "standardize": self.standardize,
            "betas": contents(self.betas_),
            "targets": contents(self.targets_),
        }
        if self.voxel_weights_ is not None:
            made_of["voxel weights"] = fingerprint({"weights": self.voxel_weights_.tolist()})
        if (index := self._paired.index) is not None:
            made_of["stimulus" if self._pairing.repeats else "order"] = fingerprint({"order": index.tolist()})
        store = Store.create(path, (t, p + 1), np.float32, made_of=made_of, overwrite=overwrite)
        for block in self.weight_blocks(lacking_targets(store)):
            write_weights(store, *block)
        store.finish()
        return store
