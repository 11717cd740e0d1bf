"""Causal self-attention on packed rows: softmax(Q K^T / sqrt(hs)) V, each token seeing itself and
those before.

Two ways to one result. PyTorch's own kernel is made for long sequences; with short ones, training
on a CPU spends most of attention's time on laying rows out for it. There, rows go straight into the
rectangles of all heads and back, by one gathering each way. Shapes as in `packing`; d = nh * hs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_gpt.core.packing import HeadRows, Packing

SHORT = {torch.bfloat16: 512}
SHORT_ELSE = 192
"""Most tokens in a sequence for which our way was the faster one, forward and backward, by the
precision: beyond, laying out all scores, (B*nh, T, T), costs more than it saves."""


def causal_attention(
    together: Tensor, packing: Packing, num_heads: int, dropout: float = 0.0
) -> Tensor:
    """Query, key and value side by side (N, 3d) -> what each token takes in (N, d)."""
    if _ours_is_faster(together, packing.width) and not dropout:
        heads = packing.heads(num_heads)
        return _ShortAttention.apply(together, heads, packing.batch * num_heads, packing.real_rows)
    parts = packing.pad(together).chunk(3, -1)  # three of (B, T, d)
    query, key, value = (split_heads(part, num_heads) for part in parts)
    context = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
    return packing.unpad(context.transpose(1, 2).flatten(2))


def _ours_is_faster(together: Tensor, width: int) -> bool:
    trained = together.requires_grad and torch.is_grad_enabled()
    short = width <= SHORT.get(together.dtype, SHORT_ELSE)
    return trained and short and together.device.type == "cpu"


def split_heads(padded: Tensor, num_heads: int) -> Tensor:  # (B, T, d) -> (B, nh, T, hs)
    return padded.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class _ShortAttention(torch.autograd.Function):
    """Attention as products of small matrices, with nothing but gathering around them.

    Pads are queries like others, of the row that stands in them; nobody reads what they take in,
    and on the way back their gradient is zero. Kept are the packed rows, not the rectangles: those
    are larger, and gathering again takes less than reading what has left the cache.
    """

    @staticmethod
    def forward(ctx, together: Tensor, heads: HeadRows, rectangles: int, real: int) -> Tensor:
        query, key, value = _rectangles(together, heads, rectangles)
        width, size = query.shape[1:]
        later = torch.full((width, width), float("-inf"), dtype=together.dtype).triu(1)
        scores = torch.baddbmm(later, query, key.transpose(1, 2), alpha=size**-0.5)
        weights = scores.softmax(-1)  # (B*nh, T, T)
        context = torch.bmm(weights, value)  # (B*nh, T, hs)
        ctx.save_for_backward(together, weights)
        ctx.heads, ctx.real = heads, real
        return context.view(-1, size).index_select(0, heads.collected).view(len(together), -1)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        together, weights = ctx.saved_tensors
        heads, shape = ctx.heads, (3, *weights.shape[:2], -1)
        query, key, value = _rectangles(together, heads, len(weights))
        size = query.shape[-1]
        real = gradient[: ctx.real].reshape(-1, size)
        of_context = torch.zeros_like(query, memory_format=torch.contiguous_format)
        of_context.view(-1, size).index_copy_(0, heads.collected[: len(real)], real)
        of_rows = together.new_empty(len(heads.spread), size)
        of_query, of_key, of_value = of_rows.view(shape)
        torch.bmm(weights.transpose(1, 2), of_context, out=of_value)
        of_weights = torch.bmm(of_context, value.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        scaled = {"beta": 0, "alpha": size**-0.5}
        torch.baddbmm(of_query, of_scores, key, **scaled, out=of_query)
        torch.baddbmm(of_key, of_scores.transpose(1, 2), query, **scaled, out=of_key)
        of_together = of_rows.index_select(0, heads.collected_thrice).view(len(gradient), -1)
        of_together[ctx.real :] = 0  # filler has read what is another row's
        return of_together, None, None, None


def _rectangles(together: Tensor, heads: HeadRows, count: int) -> Tensor:
    """Query, key and value side by side (N, 3d) -> (3, B*nh, T, hs)."""
    size = together.numel() // len(heads.collected_thrice)
    rows = together.reshape(-1, size).index_select(0, heads.spread)
    return rows.view(3, count, -1, size)
