"""A frozen weight in the layout that the processor's own library multiplies from.

In PyTorch's layout every product lays the weight out anew, and with few rows that takes as long as
the product itself. Only oneDNN's operators can read the other layout: no element, no address and no
gradient can be had of it.
"""

from functools import cache

import torch
from torch import Tensor


class PackedWeight:
    """W (out, in), ready for x W^T in its own precision, on a CPU."""

    def __init__(self, weight: Tensor):
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.nbytes = weight.nbytes

    @staticmethod
    @cache
    def works_here(dtype: torch.dtype) -> bool:
        """Whether PyTorch has that layout on this machine, and multiplies there as precisely as it
        does otherwise: tried, not looked up."""
        one = torch.eye(32, dtype=dtype)
        # A third has no end in binary: a library that was told to round to fewer bits shows.
        third = one / 3
        try:
            return torch.equal(PackedWeight(one)(third, 0 * one[0]), third)
        except (AttributeError, RuntimeError):
            return False

    def __deepcopy__(self, memo: dict[int, object]) -> "PackedWeight":
        return self  # it never changes, and PyTorch cannot copy it

    def __call__(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """x W^T + b, (N, in) -> (N, out), or GPT-2's GELU of that without a pass of its own."""
        then, form = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, then, [], form)
