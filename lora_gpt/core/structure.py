"""Module trees and parameter counts of any size, without weights, in milliseconds.

Models are built on the meta device, where tensors have shapes and no memory, and with a single
block: GPT-2's blocks are all alike, so the tree folds them into one node that stands for
`repeat` of them. The page, the command line and the report all draw from the same `Node`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from lora_gpt.config import BadValue, LoRAConfig, architecture
from lora_gpt.core.lora import (
    LinearWithLoRA,
    LoRALayer,
    mark_trainable,
    replace_head,
    replace_linear_with_lora,
)
from lora_gpt.core.model import GPTModel

STAGES = {
    "base": "The pretrained model",
    "lora": "LoRA injected, base frozen",
    "classifier": "Two-class head in place of the output head",
}
CLASSES = 2


@dataclass(frozen=True)
class Node:
    """One module. Counts include the children, each `repeat` times; shapes are PyTorch's."""

    name: str
    path: str
    type: str
    extra: str
    """What PyTorch prints inside the brackets."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """The node's own parameters, those of its children left out."""
    parameters: int
    trainable: int
    kind: str
    """What its parameters are: 'frozen', 'lora', 'head', 'trained' (a whole model that is), 'mixed'
    or 'none'."""
    change: str
    """Against the base: 'unchanged', 'replaced' or 'new'."""
    repeat: int = 1
    children: tuple["Node", ...] = ()

    def walk(self) -> Iterator["Node"]:
        """This node and all below it, top-down; a folded block once."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def label(self) -> str:
        """'0-11' for twelve folded blocks, otherwise the name."""
        return f"0-{self.repeat - 1}" if self.repeat > 1 else self.name


@dataclass(frozen=True)
class StageCount:
    """Parameters of a model at one stage; `fraction` is trainable / total."""

    stage: str
    trainable: int
    total: int

    @property
    def fraction(self) -> float:
        return self.trainable / self.total


@lru_cache(maxsize=512)
def tree(
    model: str,
    stage: str = "base",
    lora: LoRAConfig = LoRAConfig(),
    method: str = "lora",
    shape: str = "",
) -> Node:
    """The tree of `model`, or of another `shape`, at `stage`; see STAGES, `config.architecture`.

    `method` decides what is trainable at the classifier stage ('lora', 'head' or 'full'); LoRA is
    injected for 'lora' alone. Raises BadValue for an unknown model, shape or stage and for what
    `replace_linear_with_lora` refuses.
    """
    if stage not in STAGES:
        raise BadValue("stage", f"must be one of {', '.join(STAGES)}", stage)
    cfg = architecture(model, shape)
    with torch.device("meta"):
        built = GPTModel(replace(cfg, n_layers=1))
        before = {path: type(module) for path, module in built.named_modules()}
        if stage != "base":
            if method == "lora":
                replace_linear_with_lora(
                    built, lora.rank, lora.alpha, lora.targets, lora.dropout, lora.rank_stabilised
                )
            if stage == "classifier":
                replace_head(built, CLASSES)
            mark_trainable(built, method)
    return _node(built, "", "", before, cfg.n_layers, stage)


def _node(
    module: nn.Module, name: str, path: str, before: dict[str, type], n_layers: int, stage: str
) -> Node:
    children = tuple(
        _node(child, each, f"{path}.{each}" if path else each, before, n_layers, stage)
        for each, child in module.named_children()
    )
    own = dict(module.named_parameters(recurse=False))
    total = sum(p.numel() for p in own.values())
    trainable = sum(p.numel() for p in own.values() if p.requires_grad)
    total += sum(child.parameters * child.repeat for child in children)
    trainable += sum(child.trainable * child.repeat for child in children)
    return Node(
        name=name,
        path=path,
        type=type(module).__name__,
        extra=module.extra_repr(),
        shapes=tuple((each, tuple(p.shape)) for each, p in own.items()),
        parameters=total,
        trainable=trainable,
        kind=_kind(module, path, total, trainable, stage),
        change=_change(module, path, before, stage),
        repeat=n_layers if path == "trf_blocks.0" else 1,
        children=children,
    )


def _kind(module: nn.Module, path: str, total: int, trainable: int, stage: str) -> str:
    if not total:
        return "none"
    if path == "out_head" and stage == "classifier":
        return "head"
    if isinstance(module, LoRALayer):
        return "lora"
    if trainable == total:
        return "trained"
    return "mixed" if trainable else "frozen"


def _change(module: nn.Module, path: str, before: dict[str, type], stage: str) -> str:
    if isinstance(module, LinearWithLoRA):
        return "replaced"
    if path == "out_head" and stage == "classifier":
        return "new"
    return "unchanged" if path in before or path.endswith(".linear") else "new"


def counts(
    model: str, lora: LoRAConfig = LoRAConfig(), method: str = "lora", shape: str = ""
) -> list[StageCount]:
    """The three stages of `model`: as it is, with LoRA, and with a two-class head."""
    stages = STAGES if method == "lora" else ("base", "classifier")
    roots = [(stage, tree(model, stage, lora, method, shape)) for stage in stages]
    return [StageCount(stage, root.trainable, root.parameters) for stage, root in roots]


def arithmetic(node: Node) -> str:
    """How the count of a node comes about, ready to read: '768 x 768 + 768 = 590,592'."""
    if node.type == "LoRALayer":
        (_, (in_dim, rank)), (_, (_, out_dim)) = node.shapes
        return f"{rank} × ({in_dim:,} + {out_dim:,}) = {node.parameters:,}"
    terms = [" × ".join(f"{size:,}" for size in shape) for _, shape in node.shapes]
    for child in node.children:
        if child.parameters:
            times = f"{child.repeat} × " if child.repeat > 1 else ""
            terms.append(f"{times}{child.parameters:,}")
    return f"{' + '.join(terms)} = {node.parameters:,}" if terms else "no parameters"


def printed(node: Node) -> str:
    """The text that `print(model)` gives in a notebook, letter for letter."""
    if not node.children:
        return f"{node.type}({node.extra})"
    lines = [node.extra] if node.extra else []
    for child in node.children:
        times = f"{child.repeat} x " if child.repeat > 1 else ""
        below = printed(child).replace("\n", "\n  ")
        lines.append(f"({child.label}): {times}{below}")
    inside = "\n  ".join(lines)
    return f"{node.type}(\n  {inside}\n)"


def outline(node: Node, depth: int = 0) -> str:
    """The tree with its counts, one module a line, for a terminal."""
    name = "  " * depth + (f"{node.label}  " if node.label else "")
    times = f" × {node.repeat}" if node.repeat > 1 else ""
    mark = {"replaced": "replaced", "new": "new"}.get(node.change, "")
    trained = f"{node.trainable:,} trained" if node.trainable else "frozen"
    state = trained if node.parameters else ""
    line = f"{name + node.type + times:<48}{node.parameters:>14,}  {state:<22}{mark}".rstrip()
    return "\n".join([line, *(outline(child, depth + 1) for child in node.children)])
