"""A trained model as one that only answers: every update in its weight, and the weights laid out as
the processor reads them. What it says is what the model says at full strength, a third sooner.

There is no way back: it has no LoRA to weaken and nothing to train.
"""

import torch
from torch import Tensor, nn

from lora_gpt.core.classify import share
from lora_gpt.core.lora import merge, set_strength
from lora_gpt.core.model import FeedForward, GPTModel, MultiHeadAttention
from lora_gpt.core.packed_weight import PackedWeight


class PackedLinear(nn.Module):
    """Linear layers on one input, side by side, and GELU behind them where asked."""

    def __init__(self, *linears: nn.Module, gelu: bool = False):
        super().__init__()
        biases = [linear.bias for linear in linears if isinstance(linear.bias, Tensor)]
        self.weight = PackedWeight(
            torch.cat([linear.get_parameter("weight") for linear in linears])
        )
        self.bias = torch.cat(biases).detach() if biases else None
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        return self.weight(x, self.bias, self.gelu)


@torch.no_grad()
def for_answers(model: GPTModel) -> GPTModel:
    """A copy of `model` for inference; `model` and all that share its weights stay as they are.

    Takes the memory of the blocks of `model` once more: embeddings, LayerNorms and head are shared.
    """
    copy = share(model).eval()
    set_strength(copy, 1.0)
    merge(copy)
    on_cpu = copy.tok_emb.weight.device.type == "cpu"
    if on_cpu and not copy.half_precision and PackedWeight.works_here(torch.float32):
        for block in copy.trf_blocks:
            _pack_attention(block.get_submodule("att"), is_last=block is copy.trf_blocks[-1])
            _pack_feed_forward(block.get_submodule("ff"))
    return copy


def _pack_attention(attention: nn.Module, is_last: bool) -> None:
    assert isinstance(attention, MultiHeadAttention)
    asked = ("W_query", "W_key", "W_value")
    if is_last:  # its query is asked for the last tokens alone
        for name in asked:
            setattr(attention, name, PackedLinear(attention.get_submodule(name)))
    else:
        attention.side_by_side = PackedLinear(*map(attention.get_submodule, asked))
        for name in asked:
            delattr(attention, name)
    attention.out_proj = PackedLinear(attention.out_proj)  # type: ignore[assignment]


def _pack_feed_forward(feed_forward: nn.Module) -> None:
    assert isinstance(feed_forward, FeedForward)
    rise, _, fall = feed_forward.layers
    feed_forward.layers = nn.Sequential(PackedLinear(rise, gelu=True), PackedLinear(fall))
