"""GPT-2's architecture, from the smallest part to the largest, under the labs' names.

Knows the forward pass and nothing else: no weights, no LoRA, no training. Sequences of different
lengths travel as *packed rows*: the real tokens of a batch laid end to end, (N, emb_dim). Every
linear layer works on those rows, so no pad is ever multiplied; pads exist only inside attention,
where `Packing` lays the rows out as a rectangle and takes them back.

Architecture: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.3.
Shapes: B sequences, T tokens in the longest, N tokens in all, nh heads of size hs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_gpt.config import GPTConfig


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
        real = int(sizes.sum())
        self.rows = _rounded(real, multiple)
        self.filler = self.rows - real
        ends = sizes.cumsum(0)
        sequence = torch.repeat_interleave(torch.arange(self.batch), sizes)  # (real,)
        positions = torch.arange(real) - (ends - sizes)[sequence]  # (real,)
        slots = sequence * self.width + positions
        self.is_rectangle = real == self.batch * self.width and not self.filler
        self.last = (ends - 1).to(device)  # (B,) the row of each last real token
        self.positions = F.pad(positions, (0, self.filler)).to(device)  # (N,)
        # Filler reads what stands in slot 0 and is read by nobody.
        self._read = F.pad(slots, (0, self.filler)).to(device)  # (N,)
        self._written = slots.to(device)  # (real,)
        columns = torch.arange(self.width) < sizes[:, None]  # (B, T)
        self.real: Tensor | None = None if self.is_rectangle else columns[:, None, None].to(device)
        """Which columns hold no pad, (B, 1, 1, T); None where all do."""

    def pad(self, rows: Tensor) -> Tensor:
        """(N, d) -> (B, T, d), zeros at the pads."""
        if self.is_rectangle:
            return rows.unflatten(0, (self.batch, self.width))
        padded = rows.new_zeros(self.batch * self.width, rows.shape[-1])
        real = rows[: len(self._written)]
        return padded.index_copy(0, self._written, real).unflatten(0, (self.batch, self.width))

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, T, d) -> (N, d)."""
        flat = padded.flatten(0, 1)
        return flat if self.is_rectangle else flat.index_select(0, self._read)


class Rectangle(Packing):
    """Sequences of `lengths` (B,), each padded to `width` columns; pads are multiplied as well.

    What it holds follows from B, from `width` and from a tensor alone, which may lie on a GPU: so
    one series of kernels serves every batch of its shape. Causal attention keeps pads from the real
    tokens as ever, and nobody reads what stands at a pad.
    """

    def __init__(self, lengths: Tensor, width: int):
        self.batch, self.width, self.longest = len(lengths), width, width
        self.rows, self.filler, self.is_rectangle = self.batch * width, 0, True
        columns = torch.arange(width, device=lengths.device)
        begins = width * torch.arange(self.batch, device=lengths.device)
        self.last = begins + lengths - 1
        self.positions = columns.repeat(self.batch)
        self.real = (columns < lengths[:, None])[:, None, None]


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class LayerNorm(nn.Module):
    """Normalises each row to mean 0 and variance 1, then scales and shifts it."""

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:  # (N, d) -> (N, d)
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The tanh form of GELU, the one GPT-2 was trained with (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg.emb_dim, 4 * cfg.emb_dim),
            GELU(),
            nn.Linear(4 * cfg.emb_dim, cfg.emb_dim),
        )

    def forward(self, x: Tensor) -> Tensor:  # (N, d) -> (N, 4d) -> (N, d)
        return self.layers(x)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(hs)) V, each token seeing itself and those before; (B, nh, T, hs)."""
    # For short sequences in bfloat16 on a CPU, PyTorch's own kernel takes three times as long.
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or dropout:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
    batch, num_heads, width, size = query.shape
    later = torch.full((width, width), float("-inf"), dtype=query.dtype).triu(1)
    flat = [each.reshape(batch * num_heads, width, size) for each in (query, key, value)]
    scores = torch.baddbmm(later, flat[0], flat[1].transpose(1, 2), alpha=size**-0.5)
    return torch.bmm(scores.softmax(-1), flat[2]).unflatten(0, (batch, num_heads))


class MultiHeadAttention(nn.Module):
    """Causal self-attention; query, key and value are three layers, as in the labs."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.num_heads = cfg.n_heads
        self.W_query = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)
        self.W_key = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)
        self.W_value = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)
        self.out_proj = nn.Linear(cfg.emb_dim, cfg.emb_dim)
        self.dropout = nn.Dropout(cfg.drop_rate)
        self.side_by_side: Callable[[Tensor], Tensor] | None = None
        """A faster way to all three, where there is one: (N, d) -> (N, 3d)."""

    def forward(self, x: Tensor, packing: Packing, last_only: bool = False) -> Tensor:
        """(N, d) -> (N, d), or (B, d) for the last real tokens alone."""

        dropout = self.dropout.p if self.training else 0.0
        if last_only:
            # The last token sees all of its sequence: only pads must be kept from it.
            query = self._heads(self.W_query(x.index_select(0, packing.last))[:, None])
            key = self._heads(packing.pad(self.W_key(x)))
            value = self._heads(packing.pad(self.W_value(x)))
            context = F.scaled_dot_product_attention(query, key, value, packing.real, dropout)
        else:
            together = packing.pad(self._projected(x)).chunk(3, -1)  # three of (B, T, d)
            query, key, value = map(self._heads, together)
            context = causal_attention(query, key, value, dropout)
        context = context.transpose(1, 2).flatten(2)  # (B, T or 1, d)
        return self.out_proj(context[:, 0] if last_only else packing.unpad(context))

    def _projected(self, x: Tensor) -> Tensor:
        """Query, key and value side by side: (N, d) -> (N, 3d)."""
        if self.side_by_side is not None:
            return self.side_by_side(x)
        return torch.cat([self.W_query(x), self.W_key(x), self.W_value(x)], -1)

    def _heads(self, padded: Tensor) -> Tensor:  # (B, T, d) -> (B, nh, T, hs)
        return padded.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.att = MultiHeadAttention(cfg)
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg.emb_dim)
        self.norm2 = LayerNorm(cfg.emb_dim)
        self.drop_shortcut = nn.Dropout(cfg.drop_rate)

    def forward(self, x: Tensor, packing: Packing, last_only: bool = False) -> Tensor:
        """(N, d) -> (N, d), or (B, d) for the last real tokens alone."""
        attended = self.att(_narrowed(self.norm1(x)), packing, last_only)
        x = (x.index_select(0, packing.last) if last_only else x) + self.drop_shortcut(attended)
        return x + self.drop_shortcut(self.ff(_narrowed(self.norm2(x))))


def _narrowed(x: Tensor) -> Tensor:
    """`x` in the precision of the products to come: once here, not once in each layer."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class GPTModel(nn.Module):
    """Embeddings, `n_layers` blocks, a last LayerNorm and the output head."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.emb_dim)
        self.pos_emb = nn.Embedding(cfg.context_length, cfg.emb_dim)
        self.drop_emb = nn.Dropout(cfg.drop_rate)
        self.trf_blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.n_layers))
        self.final_norm = LayerNorm(cfg.emb_dim)
        self.out_head = nn.Linear(cfg.emb_dim, cfg.vocab_size, bias=False)
        self.half_precision = False
        """Whether `last_logits` multiplies in bfloat16 inside the blocks, see `machine`."""
        self.multiple = 1
        """What rows of tokens are best rounded up to."""

    def hidden_states(self, tokens: Tensor, packing: Packing, last_only: bool = False) -> Tensor:
        """Packed tokens (N,) -> what stands before the output head: (N, emb_dim), or (B, emb_dim)
        for the last real tokens alone, which spares the last block most of its work."""
        if packing.longest > self.cfg.context_length:
            raise ValueError(
                f"tokens: a sequence must be at most {self.cfg.context_length} tokens long"
                f" (context_length); got {packing.longest}"
            )
        x = self.drop_emb(self.tok_emb(tokens) + self.pos_emb(packing.positions))  # (N, d)
        last = len(self.trf_blocks) - 1
        for place, block in enumerate(self.trf_blocks):
            x = block(x, packing, last_only and place == last)
        return self.final_norm(x)

    def last_logits(self, tokens: Tensor, packing: Packing) -> Tensor:
        """Packed tokens (N,) -> logits at the last real token of each sequence (B, head size)."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.half_precision):
            hidden = self.hidden_states(tokens, packing, last_only=True)
        return self.out_head(hidden.float())

    def forward(self, tokens: Tensor) -> Tensor:
        """A full rectangle of tokens (B, T) -> logits (B, T, head size)."""
        batch, width = tokens.shape
        packing = Packing([width] * batch, tokens.device)
        hidden = self.hidden_states(tokens.flatten(), packing)  # (B*T, d)
        return self.out_head(hidden).unflatten(0, (batch, width))


def initialise(model: GPTModel, seed: int) -> GPTModel:
    """Fill `model` with GPT-2's random start and return it; same seed, same weights.

    Normal with deviation 0.02, biases 0, and the two layers that write to the shortcut scaled by
    1/sqrt(2 n_layers) (Radford et al. 2019, section 2.3).
    """
    generator = torch.Generator().manual_seed(seed)
    shortcut = 0.02 / (2 * model.cfg.n_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name.endswith("shift"):
                parameter.zero_()
            elif name.endswith("scale"):
                parameter.fill_(1.0)
            else:
                to_shortcut = name.endswith(("out_proj.weight", "ff.layers.2.weight"))
                parameter.normal_(0.0, shortcut if to_shortcut else 0.02, generator=generator)
    return model
