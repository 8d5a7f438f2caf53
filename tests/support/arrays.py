"""Stores as any reader of Zarr opens them: without leanrecon."""

import os
from typing import Any

import numpy as np
import zarr


def open_array(where: "os.PathLike[str] | str") -> Any:
    """A store as a Zarr array."""
    return zarr.open_array(os.fspath(where))


def read(where: "os.PathLike[str] | str") -> "np.ndarray[Any, Any]":
    """All of a store."""
    return open_array(where)[:]
