"""The eigendecomposition of a Gram matrix, which serves every alpha."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.kernel import Panels, deflation

Array = np.ndarray[Any, Any]


@dataclass
class Spectrum:
    """K = Vᵀ diag(values) V of a Gram matrix, ``vectors`` V [order, order].

    Each row of ``vectors`` is an eigenvector. In the dual form the kernel was deflated by ``constant`` (see
    ``kernel.cholesky``).
    """

    values: Array
    vectors: Array
    constant: float
    on_device: Any = None
    """A copy of the vectors on a device."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"on_device": None}

    def placed(self, arithmetic: Arithmetic) -> Any:
        """The vectors where products are taken."""
        if arithmetic is ON_CPU:
            return self.vectors
        if self.on_device is None:
            self.on_device = arithmetic.put(self.vectors)
        return self.on_device


def eigenvectors(gram: Panels, *, deflate: bool, arithmetic: Arithmetic = ON_CPU) -> Spectrum:
    """The eigendecomposition of a Gram matrix, over one square copy of it (LAPACK's syevd, in place)."""
    square = buffer((gram.order, gram.order), gram.dtype)
    (memory,) = gram.memories(1)
    constant = 0.0
    for j, columns in enumerate(gram.columns):
        panel = gram.load(j, memory)
        if deflate and j == 0:
            constant = deflation(panel)
        np.add(panel, gram.dtype.type(constant), out=square[columns.start :, columns.start : columns.stop])
    del memory
    values = arithmetic.syevd(square)
    return Spectrum(np.maximum(values, 0).astype(np.float64), square, constant)
