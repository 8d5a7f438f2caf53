"""What arrays have to be, and how long, to be betas, images and what goes with them."""

from leanrecon.datasets.files.rows import Rows
from leanrecon.errors import InputError


def check_length(name: str, n: int, betas: Rows) -> None:
    if n != len(betas):
        raise InputError(f"{name} has {n} rows and {betas.name} has {len(betas)}", expected="the same number")


def check_numbers(rows: Rows, kinds: str, what: str) -> None:
    if rows.dtype.kind not in kinds:
        raise InputError(f"{rows.name} holds {rows.kind} values", expected=f"{what} as real numbers")
    if 0 in rows.shape:
        raise InputError(f"{rows.name} is empty: its shape is {rows.shape}", expected=what)


def check_betas(rows: Rows) -> None:
    check_numbers(rows, "iuf", "betas")
    if len(rows.shape) != 2:
        raise InputError(
            f"{rows.name} has shape {rows.shape}",
            expected="betas as [rows, voxels]",
            todo="bring volumes into this form with their mask: betas[:, mask], or betas[mask].T where trials are last",
        )


def check_lengths(betas: Rows, stimuli: Rows) -> None:
    if len(betas) == len(stimuli):
        return
    todo = None
    if stimuli.shape[-1] == len(betas):
        todo = f"{stimuli.name} seems to have its images on the last axis: numpy.moveaxis(images, -1, 0)"
    elif betas.shape[1] == len(stimuli):
        todo = f"{betas.name} seems to be [voxels, rows]: transpose it, or set dataset.rows_last = true where images are so too"
    raise InputError(
        f"{betas.name} has {len(betas)} rows and {stimuli.name} has {len(stimuli)} images",
        expected="one image a row of betas",
        todo=todo,
    )
