"""What one module is and computes, in plain words and a formula, with the arithmetic of its count.

Pure text: a `Node` in, escaped HTML out.
"""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_gpt.core.structure import Node

LESSONS: dict[str, tuple[str, str]] = {
    "GPTModel": (
        "Turns tokens into vectors, sends them through all blocks, and reads the answer off the"
        " last real token.",
        "out_head(final_norm(blocks(tok_emb + pos_emb)))",
    ),
    "Embedding": (
        "A table: every token, or every place in the text, owns one row of numbers.",
        "x = table[index]",
    ),
    "Dropout": ("Would drop numbers at random in training; at rate 0 it passes all on.", "y = x"),
    "ModuleList": ("The blocks, one after the other, all of the same shape.", "x = block(x)"),
    "TransformerBlock": (
        "Attention and then feed-forward, each adding to what comes in.",
        "x = x + att(norm1(x));  x = x + ff(norm2(x))",
    ),
    "MultiHeadAttention": (
        "Every token looks at itself and those before it, and gathers what it needs from them.",
        "softmax(Q Kᵀ / √head size) V, then out_proj",
    ),
    "FeedForward": (
        "Each token is worked on by itself, four times as wide in the middle.",
        "W₂ GELU(W₁ x)",
    ),
    "Sequential": ("Its parts, one after the other.", "y = f₂(f₁(f₀(x)))"),
    "LayerNorm": (
        "Brings every vector to mean 0 and variance 1, then scales and shifts it.",
        "y = scale · (x − mean) / √(variance + ε) + shift",
    ),
    "GELU": ("A smooth gate: lets large numbers through, holds small ones back.", "y = x · Φ(x)"),
    "Linear": ("Every output is a weighted sum of all inputs.", "y = x Wᵀ + b"),
    "LinearWithLoRA": (
        "The frozen layer as it was, and beside it the update that is learned.",
        "y = linear(x) + lora(x)",
    ),
    "LoRALayer": (
        "Two thin matrices in place of a change to all of W. B starts at zero, so that training"
        " starts exactly at the frozen model.",
        "Δy = {scale} · (x A) B",
    ),
}
KINDS = {
    "frozen": '<span class="tag">frozen</span>',
    "lora": '<span class="tag l">LoRA, trained</span>',
    "head": '<span class="tag h">new head, trained</span>',
    "trained": '<span class="tag">all of it trainable</span>',
}


def lesson(node: "Node", scale: float) -> tuple[str, str]:
    """What the module does, and its formula, as plain text."""
    words, formula = LESSONS.get(node.type, ("A part of the model.", ""))
    if node.type == "Linear" and not any(name == "bias" for name, _ in node.shapes):
        formula = "y = x Wᵀ"
    if node.path == "out_head" and node.kind != "head":
        words = (
            "Reads a number for every token off the last vector. GPT-2's files hold this matrix"
            " once, for tok_emb and for this; as a module it is counted a second time. Without it"
            " the model has as many parameters as its name says."
        )
    if node.kind == "head":
        words = "New and trained from nothing: one number for ham, one for spam."
    return words, formula.format(scale=f"{scale:.3g}")


def anatomy_html(node: "Node", arithmetic: str, scale: float) -> str:
    """The card's inside for one module of the tree."""
    words, formula = lesson(node, scale)
    path = escape(node.path or "the whole model")
    tag = KINDS.get(node.kind, "")
    if node.kind == "mixed":
        share = node.trainable / node.parameters
        tag = f'<span class="tag l">{node.trainable:,} trained, {share:.2%}</span>'
    shapes = "".join(
        f'<tr><td class="mono">{escape(name)}</td>'
        f'<td class="mono n">{" × ".join(f"{size:,}" for size in shape)}</td>'
        f'<td class="n">{_product(shape):,}</td></tr>'
        for name, shape in node.shapes
    )
    table = (
        '<table class="plain"><tr><th scope="col">parameter</th>'
        '<th scope="col" class="n">shape</th>'
        f'<th scope="col" class="n">numbers</th></tr>{shapes}</table>'
        if shapes
        else ""
    )
    times = ""
    if node.repeat > 1:
        times = f" It stands for {node.repeat} blocks of this shape; the counts are those of one."
    return (
        f'<h3>{path}</h3><div class="anatomy"><div><p class="what"><b>{escape(node.type)}</b> {tag}'
        f'</p><p>{escape(words)}{times}</p><p class="mono formula">{escape(formula)}</p></div>'
        f'<div><div class="scroll">{table}</div><p class="sub small">{_counted(node)}</p>'
        f'<p class="mono sum">{escape(arithmetic)}</p></div></div>'
    )


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


def _counted(node: "Node") -> str:
    """The arithmetic that follows, in words."""
    if not node.parameters:
        return "It has nothing to learn:"
    if node.type == "LoRALayer":
        return "Rank times inputs plus outputs:"
    if node.children and not node.shapes:
        return "The sum of its parts:"
    return "Counted:"
