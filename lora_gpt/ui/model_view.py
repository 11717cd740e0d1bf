"""The stage of the Model tab as HTML: numbers, bar, stages, and the matrices drawn to scale.

Pure functions of `Node`s and counts; everything they write is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from lora_gpt.config import LoRAConfig
from lora_gpt.words import fraction, size

if TYPE_CHECKING:
    from lora_gpt.core.structure import Node, StageCount

LONGEST = 288  # pixels for the longest side of W; half of it where W is square
STAGES = {
    "base": "The pretrained model",
    "lora": "LoRA injected, base frozen",
    "classifier": "Two-class head in place of the output head",
}
BYTES = 4
HATCHED = 6  # pixels from which a hatch can be seen


@dataclass(frozen=True)
class Shares:
    """Where the trained parameters of a model stand."""

    lora: int
    head: int
    total: int
    replaced: int
    """Linear layers with a LoRA beside them."""

    @property
    def trained(self) -> int:
        return self.lora + self.head


def shares(root: "Node", times: int = 1) -> Shares:
    """Sum over the tree, folded blocks counted as often as they stand for."""
    times *= root.repeat
    parts = [shares(child, times) for child in root.children]
    own = root.trainable * times if not root.children else 0
    return Shares(
        lora=sum(part.lora for part in parts) + (own if root.kind == "lora" else 0),
        head=sum(part.head for part in parts) + (own if root.kind == "head" else 0),
        total=root.parameters,
        replaced=sum(part.replaced for part in parts)
        + (times if root.type == "LinearWithLoRA" else 0),
    )


def stats_html(root: "Node", base: "Node") -> str:
    """The three numbers, the bar, and in a sentence what has changed since the tree of `base`."""
    found = shares(root)
    share = found.trained / found.total
    head = _head_sentence(found.head, base) if found.head else ""
    widths = [("l", found.lora, 4), ("h", found.head, 2)]
    segments = "".join(
        f'<i class="{kind}" style="width:{100 * count / found.total:.3f}%;min-width:{least}px"></i>'
        for kind, count, least in widths
        if count
    )
    return f"""<div class="stats">
<div class="stat"><small>trained</small><strong class="l">{found.trained:,}</strong></div>
<div class="stat"><small>all parameters</small><strong>{found.total:,}</strong></div>
<div class="stat"><small>fraction</small><strong>{fraction(share)}</strong></div></div>
<div class="bar" role="img" aria-label="{fraction(share)} of all parameters are trained">{segments}
</div><p class="sub small">{found.replaced} linear layers were replaced: each keeps its W, frozen,
and gets A and B beside it. {found.lora:,} numbers are LoRA. {head}What is learned takes
{size(BYTES * found.trained)} to keep, the whole model {size(BYTES * found.total)}.</p>"""


def _head_sentence(new: int, base: "Node") -> str:
    """Why a model that was given something can be smaller than it was."""
    old = next(node.parameters for node in base.walk() if node.path == "out_head")
    return f"The output head's {old:,} numbers are gone, {new:,} new ones stand in their place. "


def said_html(root: "Node") -> str:
    """The three numbers in a sentence, for screen readers."""
    found = shares(root)
    return (
        f"{found.trained:,} of {found.total:,} parameters are trained,"
        f" {fraction(found.trained / found.total)}."
    )


def stages_html(counts: "Sequence[StageCount]", shown: str) -> str:
    """The table of the stages; the row of the stage that is shown is marked in words, too."""
    rows = "".join(
        f"{_stage_start(count.stage, count.stage == shown)}"
        f'<td class="n">{count.trainable:,}</td><td class="n">{count.total:,}</td>'
        f'<td class="n">{fraction(count.fraction)}</td></tr>'
        for count in counts
    )
    return (
        '<h3>Step by step</h3><div class="scroll"><table class="plain"><thead><tr>'
        '<th scope="col">stage</th><th scope="col" class="n">trainable</th>'
        '<th scope="col" class="n">all</th><th scope="col" class="n">fraction</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _stage_start(stage: str, shown: bool) -> str:
    if not shown:
        return f"<tr><td>{STAGES[stage]}</td>"
    name = f'<b>{STAGES[stage]}</b> <span class="tag">shown here</span>'
    return f'<tr class="on" aria-current="true"><td>{name}</td>'


def scale_html(lora: LoRAConfig) -> str:
    """The scale that alpha and rank give, with its sum."""
    below = f"√{lora.rank}" if lora.rank_stabilised else f"{lora.rank}"
    return (
        f'<p class="scale"><span>Scale</span><b>{lora.alpha:g} / {below} = {lora.scale:.3g}</b></p>'
    )


# --- drawn to scale ------------------------------------------------------------------------------


def linear_of(root: "Node", path: str) -> "Node":
    """The linear layer that `path` stands for: itself, the layer around it, or the first query.

    A layer inside a block is found with its LoRA, where it has one.
    """
    nodes = {node.path: node for node in root.walk()}
    for candidate in (path, path.rpartition(".")[0]):
        if candidate in nodes and nodes[candidate].type == "LinearWithLoRA":
            return nodes[candidate]
    if path in nodes and nodes[path].type == "Linear":
        return nodes[path]
    replaced = [node for node in nodes.values() if node.type == "LinearWithLoRA"]
    query = nodes["trf_blocks.0.att.W_query"]
    return query if query in replaced or not replaced else replaced[0]


def picture_html(node: "Node", scale: float) -> str:
    """W, A and B of one linear layer with their true proportions, and the sum of their numbers."""
    parts = {child.name: child for child in node.children}
    linear, lora = parts.get("linear", node), parts.get("lora")
    outputs, inputs = dict(linear.shapes)["weight"]
    pixels = LONGEST / max(inputs, outputs) / (2 if inputs == outputs else 1)
    if "out_head" in node.path:
        pixels = LONGEST / 2 / max(inputs, outputs)
    state = "trained" if linear.trainable else "frozen"
    kind = "new" if linear.kind == "head" else "base"
    boxes = [_box("W", inputs, outputs, pixels, kind, f"{linear.parameters:,} {state}")]
    told = f"W is {inputs:,} by {outputs:,} and {state}."
    turned = ""
    if inputs != outputs:
        turned = f" PyTorch stores W turned, out × in: {outputs:,} × {inputs:,}."
    if lora is None:
        total = f'<p class="sub small">No LoRA stands beside this layer.{turned}</p>'
        return _picture(node, boxes, told, total)
    (_, (_, rank)), _ = lora.shapes
    boxes += [
        f'<span class="sign">+ {scale:.3g} ×</span>',
        _box("A", inputs, rank, pixels, "lora", f"{inputs * rank:,} trained"),
        '<span class="sign">·</span>',
        _box("B", rank, outputs, pixels, "lora", f"{rank * outputs:,} trained"),
    ]
    told += f" A is {inputs:,} by {rank}, B is {rank} by {outputs:,}, and both are trained."
    share = lora.parameters / (inputs * outputs)
    thin = "" if rank * pixels >= 1 else " To scale, A and B would be thinner than one pixel."
    total = (
        f'<p class="mono sum">{rank} × ({inputs:,} + {outputs:,}) = {lora.parameters:,}</p>'
        f'<p class="sub small">That is {fraction(share)} of the {inputs * outputs:,} numbers of'
        f" the matrix that they change.{thin}{turned}</p>"
    )
    return _picture(node, boxes, told, total)


def _picture(node: "Node", boxes: Sequence[str], told: str, total: str) -> str:
    path = escape(node.path)
    return (
        f'<h3>{path}, drawn to scale</h3><div class="picture"><div class="matrices" role="img"'
        f' aria-label="{escape(told)}">{"".join(boxes)}</div><div>{total}</div></div>'
    )


def _box(name: str, rows: int, columns: int, pixels: float, kind: str, count: str) -> str:
    width, height = max(1.0, columns * pixels), max(1.0, rows * pixels)
    if min(width, height) >= HATCHED:
        kind += " thick"
    return (
        f'<span class="matrix"><i class="{kind}" style="width:{width:.2f}px;'
        f'height:{height:.2f}px"></i><span><b>{name}</b> {rows:,} × {columns:,}<br>{count}</span>'
        "</span>"
    )
