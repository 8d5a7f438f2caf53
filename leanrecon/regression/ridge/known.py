"""Test betas that are known when a ridge is fitted, so that its factor need not be kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


@dataclass
class Known:
    """Test betas known at fit, as they were passed and as a matrix, and the hat matrices that predict them alone."""

    source: Any
    betas: Matrix
    hats: list[Array]
    folded: bool = False
    """Whether the hat matrices have a column for each image rather than for each row of betas."""
