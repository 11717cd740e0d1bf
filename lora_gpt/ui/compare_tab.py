"""The Compare tab: what ranks, models and methods cost, and what finished runs reached."""

from typing import Any

import gradio as gr
from gradio.context import get_render_context

from lora_gpt import plots
from lora_gpt.config import METHODS, MODELS, BadValue, LoRAConfig, RunConfig
from lora_gpt.service import Service
from lora_gpt.ui.chart import chart
from lora_gpt.ui.compare_view import NO_RUNS, Cost, costs_html, curves, line_of, points, runs_html
from lora_gpt.ui.controls import config_from, control
from lora_gpt.ui.errors import refused_html
from lora_gpt.ui.session import REDRAW, TICK, Session

KNOBS = ("model", "rank", "targets")
SHOWN = RunConfig().changed(model="gpt2")
HEIGHT = 340
RUNS_TITLE = """<h3>What it reached: test accuracy of finished runs</h3>
<p class="key"><span><i class="l circle"></i>LoRA and head</span>
<span><i class="h diamond"></i>head only</span><span><i class="all square"></i>all parameters</span>
<span><i class="hollow circle"></i>hollow: random start</span><span>bars: 95% interval</span></p>"""
"""Colours and shapes are those of `plots.comparison.METHOD_MARKS`."""


def costs_of(service: Service, config: RunConfig) -> tuple[plots.Figure, str]:
    """The chart of shares and the table of costs for one choice of knobs."""
    rank, targets = config.lora.rank, config.lora.targets
    at_one = LoRAConfig(rank=1, targets=targets)
    lines = {name: line_of(service.tree(name, "classifier", at_one)) for name in MODELS}
    chosen = LoRAConfig(rank=rank, targets=targets)
    costs = []
    for name in MODELS:
        for method in METHODS:
            count = service.counts(name, chosen, method)[-1]
            costs.append(Cost(name, method, count, service.memory(count)))
    marked = MODELS[config.model].label
    figure = plots.fraction_curves(curves(lines, rank), marked, rank, HEIGHT)
    return figure, costs_html(costs, config.model, rank)


def runs_of(service: Service, owner: object) -> tuple[plots.Figure | None, str]:
    """The chart and the table of this visitor's finished runs and the bundled ones."""
    own = service.runs(owner) if isinstance(owner, str) and owner else []
    samples = service.sample_runs()
    return plots.measured_runs(points([*own, *samples])), runs_html(own, samples)


def build_tab(service: Service, session: Session) -> None:
    """Fill the tab; call it inside `gr.Tab`."""
    tab = get_render_context()
    assert isinstance(tab, gr.Tab), "the tab fills the gr.Tab that it is called in"
    with gr.Row(elem_classes="grid"):
        with gr.Column(elem_classes="controls", scale=0, min_width=270):
            knobs = [
                control("model", SHOWN.model, info="Its line is drawn bold, its rows are marked."),
                control("rank"),
                control("targets"),
            ]
            refused = gr.HTML(elem_id="compare-refused")
        with gr.Column(elem_classes="stage", min_width=300):
            with gr.Column(elem_classes="card"):
                gr.HTML("<h3>How much is trained: the share over the rank, by model</h3>")
                fractions = chart("Trained share over the rank, by model", HEIGHT)
            costs = gr.HTML(elem_classes="card", elem_id="costs")
            with gr.Column(elem_classes="card"):
                gr.HTML(RUNS_TITLE)
                measured = chart("Test accuracy over the trained share", 300, empty=NO_RUNS)
                runs = gr.HTML(elem_id="measured-runs")

    def recount(*values: Any) -> list[Any]:
        try:
            return [*costs_of(service, config_from(KNOBS, values, SHOWN)), ""]
        except BadValue as error:  # chart and table stay as they were
            return [gr.skip(), gr.skip(), refused_html(error)]

    def measure(owner: object) -> tuple[plots.Figure | None, str]:
        return runs_of(service, owner)

    shown = [fractions, costs, refused]
    gr.on([each.change for each in knobs], recount, knobs, shown, **REDRAW)
    tab.select(recount, knobs, shown, **TICK)
    tab.select(measure, session.owner, [measured, runs], **TICK)
