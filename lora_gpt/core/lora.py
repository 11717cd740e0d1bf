"""LoRA by composition: `LinearWithLoRA` holds a frozen linear layer and, beside it, a `LoRALayer`.

y = linear(x) + strength * scale * (x A) B, with A (in, r) and B (r, out) as the labs write them.
Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4. Knows
GPTModel's module paths, nothing of training or files.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_gpt.config import TARGETS, BadValue, LoRAConfig
from lora_gpt.core.model import GPTModel
from lora_gpt.core.packed_weight import PackedWeight

PATHS = {
    "W_query": "att.W_query",
    "W_key": "att.W_key",
    "W_value": "att.W_value",
    "out_proj": "att.out_proj",
    "ff_in": "ff.layers.0",
    "ff_out": "ff.layers.2",
}
"""Where each target stands inside a TransformerBlock."""
assert PATHS.keys() == TARGETS.keys()


class LoRALayer(nn.Module):
    """The update alone: x (N, in) -> scale * (x A) B (N, out)."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rank_stabilised: bool = False,
    ):
        super().__init__()
        if not 1 <= rank <= min(in_dim, out_dim):
            rule = f"must be from 1 to {min(in_dim, out_dim)} for a layer {in_dim} -> {out_dim}"
            raise BadValue("rank", rule, rank)
        if not alpha > 0:
            raise BadValue("alpha", "must be above 0", alpha)
        self.rank, self.alpha = rank, alpha
        self.scale = alpha / (math.sqrt(rank) if rank_stabilised else rank)
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.dropout = dropout
        self.draw()

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> None:
        """Fill A with its random start; B stays as it is.

        Kaiming-uniform with a = sqrt(5), as nn.Linear starts its weight. A lies transposed to a
        Linear's weight, so the fan-in is its first size; uniform_(A) by fan would take the rank.
        """
        bound = 1 / math.sqrt(self.A.shape[0])
        self.A.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (F.dropout(x, self.dropout, self.training) @ self.A @ self.B)

    def extra_repr(self) -> str:
        dropout = f", dropout={self.dropout:g}" if self.dropout else ""
        return f"rank={self.rank}, alpha={self.alpha:g}{dropout}"


class _FusedLoRALinear(torch.autograd.Function):
    """x W^T + b + scale * (x A) B for a frozen W and b, as one node of the graph.

    The update is added in place, forward and backward, and only x and x A are kept: autograd alone
    would make and keep a tensor of the output's size for each of its steps. Everything is computed
    in the precision of W; gradients of A and B come back in their own.
    """

    @staticmethod
    def forward(ctx, x, weight, packed, bias, A, B, scale):
        ctx.of_x, ctx.of_update, ctx.scale, ctx.packed = x.dtype, A.dtype, scale, packed
        x, A, B = x.to(weight.dtype), A.to(weight.dtype), (scale * B).to(weight.dtype)
        narrow = x @ A  # (N, r)
        ctx.save_for_backward(x, narrow, weight, A, B)
        if packed is not None:
            return packed.forth(x, bias).addmm_(narrow, B)  # (N, out)
        update = narrow @ B if bias is None else torch.addmm(bias, narrow, B)
        return update.addmm_(x, weight.T)

    @staticmethod
    def backward(ctx, gradient):
        x, narrow, weight, A, B = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        of_narrow = gradient @ B.T  # (N, r)
        of_x = None
        if ctx.needs_input_grad[0]:  # not below the first LoRA
            of_x = gradient @ weight if ctx.packed is None else ctx.packed.back(gradient)
            of_x = of_x.addmm_(of_narrow, A.T).to(ctx.of_x)
        # The narrow matrix first: the other way round, the wide one would be read across.
        of_A = (of_narrow.T @ x).T.contiguous().to(ctx.of_update)
        of_B = (narrow.T @ gradient).to(ctx.of_update).mul_(ctx.scale)
        return of_x, None, None, None, of_A, of_B, None


class PackedBothWays:
    """A frozen weight W (out, in) in the processor's own layout, once for each way."""

    def __init__(self, weight: Tensor):
        self.forth, self.back = PackedWeight(weight), PackedWeight(weight.T)
        """x W^T + b, (N, in) -> (N, out), and gradient W, (N, out) -> (N, in)."""


class LinearWithLoRA(nn.Module):
    """A linear layer with an update beside it. `strength` scales the update at inference: 0 is the
    frozen layer, 1 what was trained."""

    def __init__(self, linear: nn.Linear, lora: LoRALayer):
        super().__init__()
        self.linear, self.lora = linear, lora
        self.strength = 1.0
        self.strengths: Tensor | None = None
        """In place of `strength`, one for each of S equal parts of the rows, (S,)."""
        self._packed: PackedBothWays | None = None

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        if self.strengths is not None:
            each = self.strengths.repeat_interleave(len(x) // len(self.strengths))
            return self.linear(x) + each[:, None] * self.lora(x)
        if self.strength == 0:
            return self.linear(x)
        if self.can_fuse(x):
            frozen, lora = self.linear, self.lora
            return _FusedLoRALinear.apply(
                x,
                frozen.weight,
                self._packed,
                frozen.bias,
                lora.A,
                lora.B,
                self.strength * lora.scale,
            )
        return self.linear(x) + self.strength * self.lora(x)

    def can_fuse(self, x: Tensor) -> bool:
        """Whether `x` can go through weight and update as one node of the graph."""
        weight, lora = self.linear.weight, self.lora
        frozen = not (weight.requires_grad and torch.is_grad_enabled())
        # Under autocast a float32 weight is converted anew every time: autograd can do that.
        narrowed = torch.is_autocast_enabled(x.device.type)
        fitting = weight.dtype == (torch.bfloat16 if narrowed else lora.A.dtype)
        plain = x.dim() == 2 and not (lora.dropout and self.training)
        return frozen and fitting and plain and self.strengths is None

    def keep_packed(self) -> None:
        """Keep the frozen weight in the processor's own layout as well, for products of 16 bits."""
        self._packed = PackedBothWays(self.linear.weight.detach())

    def update(self) -> Tensor:
        """What the weight changes by: strength * scale * (A B)^T, (out, in)."""
        return self.strength * self.lora.scale * (self.lora.A @ self.lora.B).T

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that says the same: its weight, its own, is W and the update."""
        weight, bias = self.linear.weight, self.linear.bias
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        plain.weight = nn.Parameter(weight + self.update().to(weight), weight.requires_grad)
        plain.bias = bias
        return plain


class SideBySide:
    """Query, key and value of one attention as one product: their frozen weights in one matrix, of
    which the layers' own become views, their A side by side and their B on a diagonal.

    Where a layer cannot take part (it has another strength), each goes its own way.
    """

    def __init__(self, layers: Sequence[LinearWithLoRA]):
        self.layers = tuple(layers)
        linears = [layer.linear for layer in layers]
        self.weight = torch.cat([linear.weight.detach() for linear in linears])  # (3d, d)
        for linear, own in zip(linears, self.weight.chunk(len(linears)), strict=True):
            linear.weight.data = own
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.packed: PackedBothWays | None = None

    def keep_packed(self) -> None:
        """As `LinearWithLoRA.keep_packed`, for all of them at once."""
        self.packed = PackedBothWays(self.weight)

    def __call__(self, x: Tensor) -> Tensor:  # (N, d) -> (N, 3d)
        first = self.layers[0]
        same = all(layer.strength == first.strength for layer in self.layers)
        if not same or first.strength == 0 or not all(layer.can_fuse(x) for layer in self.layers):
            return torch.cat([layer(x) for layer in self.layers], -1)
        A = torch.cat([layer.lora.A for layer in self.layers], -1)  # (d, 3r)
        B = torch.block_diag(*(layer.lora.B for layer in self.layers))  # (3r, 3d)
        scale = first.strength * first.lora.scale
        return _FusedLoRALinear.apply(x, self.weight, self.packed, self.bias, A, B, scale)


def lay_side_by_side(model: GPTModel) -> None:
    """Give every attention whose query, key and value all have a frozen weight and LoRA a
    `SideBySide`. Module tree, parameters and their names stay as they are."""
    for block in model.trf_blocks:
        attention = block.get_submodule("att")
        layers = [attention.get_submodule(name) for name in ("W_query", "W_key", "W_value")]
        fitting = [layer for layer in layers if isinstance(layer, LinearWithLoRA)]
        if len(fitting) == 3 and not any(each.linear.weight.requires_grad for each in fitting):
            attention.side_by_side = SideBySide(fitting)  # type: ignore[assignment]


def replace_linear_with_lora(
    model: GPTModel,
    rank: int,
    alpha: float,
    targets: Iterable[str] = tuple(TARGETS),
    dropout: float = 0.0,
    rank_stabilised: bool = False,
) -> int:
    """Put a LoRA beside every target layer of every block, in place; returns how many.

    The output head is never a target. Raises BadValue for an unknown target, an empty choice, a
    rank outside 1..min(in, out), an alpha of 0 or less, and a model that has LoRA already; the
    model is then unchanged.
    """
    targets = list(targets)
    for target in targets:
        if target not in PATHS:
            raise BadValue("targets", f"must be taken from {', '.join(PATHS)}", target)
    if not targets:
        raise BadValue("targets", f"must name at least one of {', '.join(PATHS)}", targets)
    if any(True for _ in lora_layers(model)):
        raise BadValue("model", "must not have LoRA yet: inject once", "a model with LoRA")
    replacements = []
    for block in model.trf_blocks:
        for target in dict.fromkeys(targets):
            parent_path, _, name = PATHS[target].rpartition(".")
            parent = block.get_submodule(parent_path)
            linear = parent.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            with torch.device(linear.weight.device):
                lora = LoRALayer(
                    linear.in_features, linear.out_features, rank, alpha, dropout, rank_stabilised
                )
            replacements.append((parent, name, LinearWithLoRA(linear, lora)))
    # Only now, so that a refused rank leaves no half-injected model behind.
    for parent, name, wrapped in replacements:
        setattr(parent, name, wrapped)
    return len(replacements)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LinearWithLoRA]]:
    """Every injected layer with its path, in order."""
    for path, module in model.named_modules():
        if isinstance(module, LinearWithLoRA):
            yield path, module


def replace_head(model: GPTModel, classes: int = 2) -> None:
    """Put a new linear head of `classes` outputs, with bias, in place of the output head."""
    with torch.device(model.out_head.weight.device):
        model.out_head = nn.Linear(model.cfg.emb_dim, classes)


def mark_trainable(model: GPTModel, method: str) -> None:
    """Freeze all but what `method` trains: 'lora' (every A, B and the head), 'head', or 'full'.

    A head counts as new, and so as trainable, once `replace_head` has put it there.
    """
    if method not in ("lora", "head", "full"):
        raise BadValue("method", "must be one of lora, head, full", method)
    for parameter in model.parameters():
        parameter.requires_grad_(method == "full")
    if model.out_head.bias is not None:
        model.out_head.requires_grad_(True)
    if method == "lora":
        for _, layer in lora_layers(model):
            layer.lora.requires_grad_(True)


def prepare(model: GPTModel, method: str, lora: LoRAConfig, seed: int) -> GPTModel:
    """Turn a base into the classifier that `method` starts from, in place, and return it.

    The same seed gives the same A and the same head, whatever other threads draw meanwhile.
    """
    if method == "lora":
        replace_linear_with_lora(
            model, lora.rank, lora.alpha, lora.targets, lora.dropout, lora.rank_stabilised
        )
    replace_head(model)
    _draw(model, seed)
    mark_trainable(model, method)
    return model


@torch.no_grad()
def _draw(model: GPTModel, seed: int) -> None:
    """Draw every A and the head anew, from a generator that nobody else draws from."""
    device = model.out_head.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    for _, layer in lora_layers(model):
        layer.lora.draw(generator)
    bound = 1 / math.sqrt(model.out_head.in_features)
    model.out_head.weight.uniform_(-bound, bound, generator=generator)
    if model.out_head.bias is not None:
        model.out_head.bias.uniform_(-bound, bound, generator=generator)


def set_strength(model: nn.Module, strength: float) -> None:
    """Scale every update at inference."""
    for _, layer in lora_layers(model):
        layer.strength = strength


@contextmanager
def strength_of_each(model: nn.Module, strengths: Sequence[float]) -> Iterator[None]:
    """Let a batch of as many sequences as `strengths`, all of one length, be asked at once, each at
    its own strength; afterwards `model` is at strength 1."""
    set_strength(model, 1.0)
    layers = [layer for _, layer in lora_layers(model)]
    try:
        for layer in layers:
            layer.strengths = torch.tensor(strengths, device=layer.lora.A.device)
        yield
    finally:
        for layer in layers:
            layer.strengths = None


def merge(model: GPTModel) -> None:
    """Put a plain layer in place of every `LinearWithLoRA`, the update in its weight, in place.

    Nothing of LoRA is left, so that merging twice equals merging once; other models over the same
    weights stay as they are.
    """
    for block in model.trf_blocks:
        attention = block.get_submodule("att")
        attention.side_by_side = None  # type: ignore[assignment] # it asks the layers that go
    for path, layer in list(lora_layers(model)):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.merged())
