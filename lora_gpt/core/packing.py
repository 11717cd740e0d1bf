"""Sequences of different lengths as *packed rows*: their real tokens laid end to end, (N, d).

Every linear layer works on those rows, so no pad is ever multiplied. Only attention needs a
rectangle; this room knows where each row stands in it, and nothing of what is computed there.
Shapes: B sequences, T columns of the rectangle, N rows in all, nh heads of size hs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Packing:
    """Where each packed row stands in the (B, T) rectangle of its batch.

    `lengths` holds the number of real tokens of each sequence, at least 1. Sequences start at
    column 0, pads stand to the right: causal attention never looks at a pad and needs no mask.
    N and T are rounded up to `multiple`, with filler rows behind the real ones: some libraries
    compile a kernel for each shape that they meet, so it pays to meet few.
    """

    def __init__(self, lengths: list[int], device: torch.device | str = "cpu", multiple: int = 1):
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths: every sequence needs at least one token; got {lengths}")
        sizes = torch.tensor(lengths)
        self.batch, self.longest = len(lengths), max(lengths)
        self.width = _rounded(self.longest, multiple)
        self.real_rows = int(sizes.sum())
        self.rows = _rounded(self.real_rows, multiple)
        self.filler = self.rows - self.real_rows
        ends = sizes.cumsum(0)
        sequence = torch.repeat_interleave(torch.arange(self.batch), sizes)  # (real,)
        positions = torch.arange(self.real_rows) - (ends - sizes)[sequence]  # (real,)
        slots = sequence * self.width + positions
        self.is_rectangle = self.rows == self.batch * self.width and not self.filler
        self.last = (ends - 1).to(device)  # (B,) the row of each last real token
        self.positions = F.pad(positions, (0, self.filler)).to(device)  # (N,)
        # Filler reads what stands in slot 0 and is read by nobody.
        self._read = F.pad(slots, (0, self.filler)).to(device)  # (N,)
        self._written = slots.to(device)  # (real,)
        columns = torch.arange(self.width) < sizes[:, None]  # (B, T)
        self.real: Tensor | None = None if self.is_rectangle else columns[:, None, None].to(device)
        """Which columns hold no pad, (B, 1, 1, T); None where all do."""
        self._heads: dict[int, HeadRows] = {}

    def pad(self, rows: Tensor) -> Tensor:
        """(N, d) -> (B, T, d), zeros at the pads."""
        if self.is_rectangle:
            return rows.unflatten(0, (self.batch, self.width))
        padded = rows.new_zeros(self.batch * self.width, rows.shape[-1])
        real = rows[: self.real_rows]
        return padded.index_copy_(0, self._written, real).unflatten(0, (self.batch, self.width))

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, T, d) -> (N, d)."""
        flat = padded.flatten(0, 1)
        return flat if self.is_rectangle else flat.index_select(0, self._read)

    def heads(self, num_heads: int) -> "HeadRows":
        """The same for the rows of each head, made once for all layers."""
        if num_heads not in self._heads:
            self._heads[num_heads] = self._head_rows(num_heads)
        return self._heads[num_heads]

    def _head_rows(self, num_heads: int) -> "HeadRows":
        device = self._read.device
        head, part = torch.arange(num_heads, device=device), torch.arange(3, device=device)
        row = torch.zeros(self.batch * self.width, dtype=torch.long, device=device)
        row[self._written] = torch.arange(self.real_rows, device=device)
        row = row.view(1, self.batch, 1, self.width)
        spread = (row * 3 + part.view(3, 1, 1, 1)) * num_heads + head.view(1, 1, -1, 1)
        sequence, column = self._read // self.width, self._read % self.width
        one = (sequence[:, None] * num_heads + head) * self.width + column[:, None]  # (N, nh)
        size = self.batch * num_heads * self.width
        three = one[:, None] + size * part[:, None]  # (N, 3, nh)
        return HeadRows(spread.flatten(), one.flatten(), three.flatten())


@dataclass(frozen=True)
class HeadRows:
    """Numbers of rows of one head, hs values each, between packed rows and the rectangles of all
    heads, (B*nh, T, hs)."""

    spread: Tensor
    """Rows of query, key and value side by side, (N, 3, nh), that the three rectangles hold,
    (3*B*nh*T,); pads hold row 0."""
    collected: Tensor
    """Rows of one rectangle that packed rows hold, (N*nh,)."""
    collected_thrice: Tensor
    """Rows of three rectangles that query, key and value side by side hold, (N*3*nh,)."""


class Rectangle(Packing):
    """Sequences of `lengths` (B,), each padded to `width` columns; pads are multiplied as well.

    What it holds follows from B, from `width` and from a tensor alone, which may lie on a GPU: so
    one series of kernels serves every batch of its shape. Causal attention keeps pads from the real
    tokens as ever, and nobody reads what stands at a pad.
    """

    def __init__(self, lengths: Tensor, width: int):
        self.batch, self.width, self.longest = len(lengths), width, width
        self.rows = self.real_rows = self.batch * width
        self.filler, self.is_rectangle = 0, True
        columns = torch.arange(width, device=lengths.device)
        begins = width * torch.arange(self.batch, device=lengths.device)
        self.last = begins + lengths - 1
        self.positions = columns.repeat(self.batch)
        self.real = (columns < lengths[:, None])[:, None, None]
        self._read = self._written = torch.arange(self.rows, device=lengths.device)
        self._heads = {}


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
