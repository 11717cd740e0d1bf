"""The Compare tab: what ranks, models and methods cost, and what finished runs reached."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.context import get_render_context

from lora_gpt import plots
from lora_gpt.config import METHODS, MODELS, SHOWN_MODEL, BadValue, LoRAConfig, RunConfig
from lora_gpt.service import Service
from lora_gpt.ui.chart import chart
from lora_gpt.ui.compare_view import (
    NO_RUNS,
    Cost,
    costs_html,
    curves,
    line_of,
    marked,
    points,
    runs_html,
)
from lora_gpt.ui.controls import config_from, control
from lora_gpt.ui.errors import refused_html
from lora_gpt.ui.session import REDRAW, TICK, Session

KNOBS = ("model", "rank", "targets")
SHOWN = RunConfig().changed(model=SHOWN_MODEL)
HEIGHT, RUNS_HEIGHT = 340, 300
FOLLOW = 3.0
"""Seconds between two looks for runs that have finished or are gone."""
RUNS_TITLE = """<h3>What it reached: test accuracy of finished runs</h3>
<p class="key"><span><i class="l circle"></i>LoRA and head</span>
<span><i class="h diamond"></i>head only</span><span><i class="all square"></i>all parameters</span>
<span><i class="hollow circle"></i>hollow: random start</span><span>bars: 95% interval</span>
<span>numbers and letters: rows below</span></p>"""
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


@dataclass(frozen=True)
class Listed:
    """What the runs on the page were read from."""

    stamp: int
    unfinished: Mapping[str, str]
    """Status by id of the visitor's runs that may still finish."""
    table: str

    def holds(self, service: Service) -> bool:
        """Whether they would be read the same now: a few looks, where a list reads every folder."""
        return self.stamp == service.stamp() and service.is_at(self.unfinished)


def runs_of(service: Service, owner: object, before: Listed | None = None) -> list[Any]:
    """The chart and the table of this visitor's finished runs and the bundled ones, and the
    `Listed` behind them; what stands as it did `before` is skipped."""
    if before and before.holds(service):
        return [gr.skip()] * 3
    stamp = service.stamp()  # first: what happens while the list is read is seen the next time
    own = service.runs(owner) if isinstance(owner, str) and owner else []
    unfinished = {run.id: run.status for run in own if run.status != "finished"}
    runs = marked(own, service.sample_runs())
    listed = Listed(stamp, unfinished, runs_html(runs))
    if before and before.table == listed.table:
        return [gr.skip(), gr.skip(), listed]
    return [plots.measured_runs(points(runs), RUNS_HEIGHT), listed.table, listed]


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
                measured = chart("Test accuracy over the trained share", RUNS_HEIGHT, empty=NO_RUNS)
                runs = gr.HTML(elem_id="measured-runs")
                listed = gr.State(None)

    def recount(*values: Any) -> list[Any]:
        try:
            return [*costs_of(service, config_from(KNOBS, values, SHOWN)), ""]
        except BadValue as error:  # chart and table stay as they were
            return [gr.skip(), gr.skip(), refused_html(error)]

    def measure(owner: object, before: Listed | None) -> list[Any]:
        return runs_of(service, owner, before)

    shown = [fractions, costs, refused]
    gr.on([each.change for each in knobs], recount, knobs, shown, **REDRAW)
    tab.select(recount, knobs, shown, **TICK)
    looked, told = [session.owner, listed], [measured, runs, listed]
    tab.select(measure, looked, told, **TICK)
    # A clock of its own: it does not run before the tab is opened for the first time.
    gr.Timer(FOLLOW).tick(measure, looked, told, **TICK)
