"""What the Compare tab shows: shares over ranks, costs by method, finished runs.

Pure: counts and summaries in, curves and escaped HTML out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from string import ascii_uppercase
from typing import TYPE_CHECKING

from lora_gpt.config import METHODS, MODELS
from lora_gpt.plots import RunPoint
from lora_gpt.service import RunSummary
from lora_gpt.ui.model_view import shares
from lora_gpt.words import duration, fraction, percent, size

if TYPE_CHECKING:
    from lora_gpt.core.cost import Memory
    from lora_gpt.core.structure import Node, StageCount

RANKS = range(1, 257)
SEVERAL = tuple(2**power for power in range(9))
NO_RUNS = (
    "No finished run yet. Train one on the Train tab, with another rank or method each time:"
    " every run becomes a point here."
)


@dataclass(frozen=True)
class Line:
    """How many parameters LoRA trains at any rank: `head` + rank x `per_rank`, beside `frozen`."""

    head: int
    per_rank: int
    frozen: int

    def fraction(self, rank: int) -> float:
        trained = self.head + rank * self.per_rank
        return trained / (self.frozen + trained)


def line_of(rank_one: "Node") -> Line:
    """The law from the tree with rank 1: a LoRA's count is its rank times inputs plus outputs."""
    found = shares(rank_one)
    return Line(found.head, found.lora, found.total - found.trained)


def curves(lines: Mapping[str, Line], rank: int) -> dict[str, list[tuple[int, float]]]:
    """(rank, share) at the powers of two and at `rank`, by the models' names for people."""
    ranks = sorted({*SEVERAL, rank})
    return {
        MODELS[name].label: [(each, line.fraction(each)) for each in ranks]
        for name, line in lines.items()
    }


# --- costs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """One row: a model trained by one method."""

    model: str
    method: str
    count: "StageCount"
    memory: "Memory"


def costs_html(costs: Sequence[Cost], marked: str, rank: int) -> str:
    """The table of methods and models; the model `marked` is bold, tinted and has a bar."""
    bodies = []
    for model, own in groupby(costs, key=lambda cost: cost.model):
        rows = [_cost_cells(cost, rank) for cost in own]
        on, current = (' class="on"', ' aria-current="true"') if model == marked else ("", "")
        name = f'<th scope="rowgroup" rowspan="{len(rows)}"{current}>{MODELS[model].label}</th>'
        bodies.append(f"<tbody{on}><tr>{name}{'</tr><tr>'.join(rows)}</tr></tbody>")
    heads = ("trained", "all", "fraction", "weights", "gradients", "optimizer", "together")
    return (
        "<h3>Parameters, and the memory that training holds from start to end</h3>"
        '<div class="scroll"><table class="plain whole"><thead><tr><th scope="col">model</th>'
        f'<th scope="col">method</th>{_titles(heads)}</tr></thead>{"".join(bodies)}</table></div>'
        '<p class="sub small">Single precision, 4 bytes a number; AdamW keeps two more numbers for'
        " each trained one. What a batch needs on its way through comes on top.</p>"
    )


def _cost_cells(cost: Cost, rank: int) -> str:
    """A row without its model, whose name stands beside all rows of it."""
    method = f"LoRA r {rank} and head" if cost.method == "lora" else METHODS[cost.method]
    count, held = cost.count, cost.memory
    sizes = (held.weights, held.gradients, held.optimizer, held.total)
    cells = (f"{count.trainable:,}", f"{count.total:,}", fraction(count.fraction))
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in (*cells, *map(size, sizes)))
    return f'<th scope="row">{method}</th>{numbers}'


def _titles(heads: Sequence[str]) -> str:
    """The heads of columns of numbers."""
    return "".join(f'<th scope="col" class="n">{each}</th>' for each in heads)


# --- runs ----------------------------------------------------------------------------------------


def marked(own: Sequence[RunSummary], samples: Sequence[RunSummary]) -> dict[str, RunSummary]:
    """The runs that have been measured, by the mark that chart and table share: the visitor's by
    their numbers in the tab Train, newest first, the bundled ones by letters."""
    marks = [*(str(len(own) - place) for place in range(len(own))), *ascii_uppercase]
    runs = [*own, *samples]
    return {
        mark: run
        for mark, run in zip(marks, runs, strict=False)
        if run.finished is not None and run.started is not None
    }


def points(runs: Mapping[str, RunSummary]) -> list[RunPoint]:
    """The `marked` runs as points."""
    found = []
    for mark, run in runs.items():
        assert run.finished is not None and run.started is not None
        low, high = run.finished.test["interval"]
        found.append(
            RunPoint(
                label=run.label,
                mark=mark,
                method=run.config.training.method,
                fraction=run.started.trainable / run.started.total,
                accuracy=run.finished.test["accuracy"],
                low=low,
                high=high,
                random_start=run.config.init == "random",
            )
        )
    return found


def runs_html(runs: Mapping[str, RunSummary]) -> str:
    """The table of the `marked` runs, the visitor's first."""
    rows = [_run_row(mark, run) for mark, run in runs.items()]
    if not rows:
        return ""  # the chart says it
    # What was reached comes first: a phone shows one column beside the name.
    heads = (
        "test accuracy",
        "95% interval",
        "right",
        "linear model",
        "trained",
        "fraction",
        "time",
    )
    return (
        '<div class="scroll"><table class="plain whole"><thead><tr><th scope="col">run</th>'
        f"<td></td>{_titles(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="sub small">Runs whose intervals overlap may be equally good. The linear model'
        " is TF-IDF with a support vector machine on the same split.</p>"
    )


def _run_row(mark: str, run: RunSummary) -> str:
    assert run.finished is not None and run.started is not None
    test, started = run.finished.test, run.started
    low, high = test["interval"]
    whose = "yours" if mark.isdigit() else "bundled"
    cells = (
        percent(test["accuracy"]),
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{test['tn'] + test['tp']:,} of {test['size']:,}",
        percent(run.finished.baseline["accuracy"]),
        f"{started.trainable:,}",
        fraction(started.trainable / started.total),
        duration(run.finished.train_seconds),
    )
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return (
        f'<tr><th scope="row" class="name">{mark}. {escape(run.label)}</th>'
        f'<td><span class="tag">{whose}</span></td>{numbers}</tr>'
    )
