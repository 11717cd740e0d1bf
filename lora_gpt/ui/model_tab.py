"""The Model tab: what injecting LoRA changes in the model, before anything is trained."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_gpt.config import SHOWN_MODEL, BadValue, LoRAConfig, RunConfig
from lora_gpt.service import Service
from lora_gpt.ui.anatomy import anatomy_html
from lora_gpt.ui.controls import config_from, control
from lora_gpt.ui.errors import refused_html
from lora_gpt.ui.model_view import (
    linear_of,
    picture_html,
    said_html,
    scale_html,
    stages_html,
    stats_html,
)
from lora_gpt.ui.session import REDRAW, Session, spoken
from lora_gpt.ui.tree import tree_html, tree_view

KNOBS = ("model", "rank", "alpha", "targets", "rank_stabilised")
FIRST = "trf_blocks.0.att.W_query"
SHOWN = RunConfig().changed(model=SHOWN_MODEL)


@dataclass(frozen=True)
class Stage:
    """Everything that the tab shows, in the order of its components."""

    scale: str
    stats: str
    said: str
    """The numbers of `stats` in a sentence that is read out when it changes."""
    trees: str
    picture: str
    module: str
    stages: str
    before: str
    after: str

    def values(self) -> list[str]:
        return list(vars(self).values())


def stage_of(
    service: Service,
    model: str,
    lora: LoRAConfig,
    classifier: bool,
    chosen: str,
    side: str = "after",
) -> Stage:
    """The tab's contents for one choice of knobs; `chosen` is the path of a module, explained as it
    is 'before' or 'after' injection."""
    shown = "classifier" if classifier else "lora"
    before, after = service.tree(model, "base", lora), service.tree(model, shown, lora)
    # A module that the new choice no longer has gives way to the one that it stood in.
    looked_at = before if side == "before" else after
    paths = {node.path: node for node in looked_at.walk()}
    while chosen not in paths:
        chosen = chosen.rpartition(".")[0]
    node = paths[chosen]
    return Stage(
        scale=scale_html(lora),
        stats=stats_html(after, before),
        said=said_html(after),
        trees=tree_html(before, after),
        picture=picture_html(linear_of(looked_at, chosen), lora.scale),
        module=anatomy_html(node, service.arithmetic(node), lora.scale),
        stages=stages_html(service.counts(model, lora), shown),
        before=service.printed(before),
        after=service.printed(after),
    )


def build_tab(service: Service, session: Session) -> None:
    """Fill the tab; call it inside `gr.Tab`."""
    first = stage_of(service, SHOWN.model, SHOWN.lora, True, FIRST)
    chosen = gr.State(FIRST)
    with gr.Row(elem_classes="grid"):
        with gr.Column(elem_classes="controls", scale=0, min_width=270):
            knobs = _controls()
            scale = gr.HTML(first.scale, elem_id="model-scale")
            head = gr.Checkbox(
                value=True,
                label="Two-class head",
                info="Put a new head of two outputs, ham and spam, in place of the output head.",
            )
        with gr.Column(elem_classes="stage", min_width=320):
            stats = gr.HTML(first.stats, elem_id="model-stats")
            said = spoken("model-said", first.said)
            trees = tree_view(first.trees, FIRST)
            module = gr.HTML(first.module, elem_classes="card module", elem_id="module")
            picture = gr.HTML(first.picture, elem_classes="card", elem_id="picture")
            stages = gr.HTML(first.stages, elem_classes="card")
            before, after = _printed(first)

    outputs = [scale, stats, said, trees, picture, module, stages, before, after]
    inputs = [*knobs, head, chosen]

    def redraw(*values: Any) -> list[Any]:
        *given, classifier, path = values
        try:
            config = config_from(KNOBS, given, SHOWN)
        except BadValue as error:  # the stage stays as it was
            return [refused_html(error), *[gr.skip()] * (len(outputs) - 1)]
        return stage_of(service, config.model, config.lora, bool(classifier), str(path)).values()

    def pick(data: gr.EventData, *values: Any) -> list[Any]:
        path, side = (str(data._data.get(name, ""))[:100] for name in ("module", "side"))
        try:
            config = config_from(KNOBS, values[:-1], SHOWN)
        except BadValue:  # said where the knobs are
            return [gr.skip()] * 3
        stage = stage_of(service, config.model, config.lora, bool(values[-1]), path, side)
        return [path, stage.picture, stage.module]

    gr.on([each.change for each in (*knobs, head)], redraw, inputs, outputs, **REDRAW)
    # Each on its own: of picks that wait for each other Gradio sends the first one's data again.
    each = REDRAW | {"trigger_mode": "multiple"}
    trees.pick(pick, [*knobs, head], [chosen, picture, module], **each)


def _controls() -> list[Any]:
    """The knobs that a model can be changed by, in the order of KNOBS."""
    return [
        control("model", SHOWN.model),
        control("rank"),
        control("alpha", minimum=1, maximum=256),
        control("targets", elem_classes="choices"),
        control("rank_stabilised"),
    ]


def _printed(first: Stage) -> tuple[gr.Code, gr.Code]:
    """The two texts that `print(model)` gives, folded away until someone wants them."""
    with (
        gr.Accordion("What print(model) writes in a notebook", open=False, elem_classes="card"),
        gr.Row(),
    ):
        style: dict[str, Any] = {"language": None, "interactive": False, "max_lines": 24}
        before = gr.Code(first.before, label="Before", min_width=300, **style)
        after = gr.Code(first.after, label="After", min_width=300, **style)
    return before, after
