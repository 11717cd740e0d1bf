"""GPT-2's architecture, from the smallest part to the largest, under the labs' names.

Knows the forward pass and nothing else: no weights, no LoRA, no training. Sequences of different
lengths travel as packed rows, the real tokens of a batch laid end to end, (N, emb_dim): see
`packing`.

Architecture: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.3.
Shapes: B sequences, T tokens in the longest, N tokens in all, nh heads of size hs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_gpt.config import GPTConfig
from lora_gpt.core.attention import causal_attention, split_heads
from lora_gpt.core.packing import Packing


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
            one = self.W_query(x.index_select(0, packing.last))[:, None]  # (B, 1, d)
            padded = one, packing.pad(self.W_key(x)), packing.pad(self.W_value(x))
            query, key, value = (split_heads(each, self.num_heads) for each in padded)
            context = F.scaled_dot_product_attention(query, key, value, packing.real, dropout)
            context = context.transpose(1, 2).flatten(1)  # (B, d)
        else:
            context = causal_attention(self._projected(x), packing, self.num_heads, dropout)
        return self.out_proj(context)

    def _projected(self, x: Tensor) -> Tensor:
        """Query, key and value side by side: (N, d) -> (N, 3d)."""
        if self.side_by_side is not None:
            return self.side_by_side(x)
        return torch.cat([self.W_query(x), self.W_key(x), self.W_value(x)], -1)


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
