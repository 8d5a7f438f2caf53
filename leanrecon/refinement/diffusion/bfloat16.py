"""Attention and convolutions of large networks in bfloat16, for CPUs on which PyTorch's own leave half the rate unused.

The numbers are those of PyTorch's functions up to the rounding of bfloat16. Small networks keep PyTorch's functions.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from leanrecon.refinement.diffusion.precision import multiplies_bfloat16_in_vectors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of this arithmetic."""

KEYS = 1024
"""Keys from which attention goes in blocks of queries. With fewer, PyTorch's is as fast."""

_QUERIES = 512  # of a block, whose weights (4 MB for 4096 keys) stay in the cache

_SAMPLED = 64  # keys by which a query's scores are centred

_WIDTH = 16  # of a vector of float32 sums: 48 columns take less time than 40

WEIGHTS_PER_PIXEL = 100_000
"""Weights for each pixel of the output from which a convolution is a product with its weights as they lie. To lay them
out in blocks, as oneDNN does in every call, then takes longer than to copy the input's patches."""


def in_use(precision: str, device: str) -> bool:
    """Whether networks run by the functions of this module, on this machine."""
    return precision == "bfloat16" and device == "cpu" and multiplies_bfloat16_in_vectors()


def faster(precision: str, device: str) -> AbstractContextManager[Any]:
    """A context in which large attention and small convolutions take the functions of this module, where in use."""
    return _mode() if in_use(precision, device) else contextlib.nullcontext()


def _mode() -> AbstractContextManager[Any]:
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class Faster(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is functional.scaled_dot_product_attention and in_blocks(*args, **kwargs):
                return attention(*args[:3], **{name: kwargs[name] for name in kwargs if name in _INPUTS})
            if function is functional.conv2d and is_small(*args, **kwargs):
                return convolution(*args[:5], **{name: kwargs[name] for name in kwargs if name in _SHAPED})
            return function(*args, **kwargs)

    mode: AbstractContextManager[Any] = Faster()
    return mode


_INPUTS = ("query", "key", "value")
_SHAPED = ("bias", "stride", "padding")


# Attention


def in_blocks(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> bool:
    """Whether ``attention`` takes these arguments of PyTorch's scaled_dot_product_attention."""
    import torch

    plain = attn_mask is None and not dropout_p and not is_causal and not any(others.values())
    return (
        plain
        and query.dtype is key.dtype is value.dtype is torch.bfloat16
        and query.dim() == key.dim() == value.dim() == 4
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and key.shape[2] >= KEYS
    )


def attention(query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
    """softmax(q kᵀ / √d) v in bfloat16, block by block of queries: [batch, heads, queries, d].

    Scores are rounded to bfloat16 after a number of each query's own was taken from them, which changes no softmax: the
    mean of its scores with every 64th part of the keys, weighted by their softmax. What is left of the scores that
    matter is small, and so is its rounding.
    """
    import torch
    from torch.nn import functional

    batch, heads, queries, width = query.shape
    keys, scale = key.shape[2], width**-0.5
    out = torch.empty(batch, queries, heads, value.shape[3], dtype=query.dtype).transpose(1, 2)
    scores = torch.empty(min(_QUERIES, queries), keys, dtype=query.dtype)
    ones = key.new_ones(keys, 1)
    for image in range(batch):
        for head in range(heads):
            q, k, v = query[image, head], key[image, head], value[image, head]
            some = torch.mm(q, k[:: max(keys // _SAMPLED, 1)].t()).float() * scale
            centre = (some.softmax(-1) * some).sum(-1, keepdim=True)
            q = torch.cat([q, (centre / -scale).to(q.dtype)], 1)  # a column that takes the centre from every score
            k = torch.cat([k, ones], 1).t()
            v = functional.pad(v, (0, -v.shape[1] % _WIDTH))
            for start in range(0, queries, _QUERIES):
                some = q[start : start + _QUERIES]
                block = scores[: len(some)]
                torch.addmm(block, some, k, beta=0, alpha=scale, out=block)
                torch.softmax(block, -1, out=block)
                out[image, head, start : start + len(some)] = torch.mm(block, v)[:, : value.shape[3]]
    return out


# Convolutions


def is_small(
    input: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None" = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether ``convolution`` takes these arguments of PyTorch's conv2d."""
    import torch

    if input.dtype is not torch.bfloat16 or bias is None or groups != 1:
        return False
    if input.dim() != 4 or isinstance(padding, str) or _pair(dilation) != (1, 1) or tuple(weight.shape[2:]) == (1, 1):
        return False
    height, wide = _output(input, weight, stride, padding)
    return weight.numel() >= WEIGHTS_PER_PIXEL * len(input) * height * wide and weight.is_contiguous()


def convolution(
    input: "Tensor", weight: "Tensor", bias: "Tensor | None" = None, stride: Any = 1, padding: Any = 0
) -> "Tensor":
    """A convolution in bfloat16 [batch, in, height, width] as one product of its weights and the patches of its input."""
    import torch
    from torch.nn import functional

    height, wide = _output(input, weight, stride, padding)
    patches = functional.unfold(input.contiguous(), tuple(weight.shape[2:]), 1, _pair(padding), _pair(stride))
    columns = patches.transpose(0, 1).reshape(patches.shape[1], -1)
    flat = weight.view(len(weight), -1)
    found = torch.mm(flat, columns) if bias is None else torch.addmm(bias[:, None], flat, columns)
    out = found.view(len(weight), len(input), height, wide).transpose(0, 1)
    return out.contiguous(memory_format=torch.channels_last)


def _output(input: "Tensor", weight: "Tensor", stride: Any, padding: Any) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    sides = zip(input.shape[2:], weight.shape[2:], _pair(stride), _pair(padding), strict=True)
    height, wide = ((side + 2 * around - kernel) // step + 1 for side, kernel, step, around in sides)
    return height, wide


def _pair(setting: Any) -> tuple[int, int]:
    first, second = (setting, setting) if isinstance(setting, int) else setting
    return first, second
