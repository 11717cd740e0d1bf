from dataclasses import dataclass, replace
from html.parser import HTMLParser

from lora_gpt.config import METHODS, MODELS, RunConfig
from lora_gpt.events import Finished, Started
from lora_gpt.plots.comparison import METHOD_MARKS
from lora_gpt.service import RunSummary
from lora_gpt.ui.compare_tab import RUNS_TITLE
from lora_gpt.ui.compare_view import Cost, costs_html, marked, points, runs_html

HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Count:
    trainable: int = 1_000
    total: int = 100_000
    fraction: float = 0.01


@dataclass(frozen=True)
class Held:
    weights: int = 400_000
    gradients: int = 4_000
    optimizer: int = 8_000
    total: int = 412_000


class Tags(HTMLParser):
    """The opening tags of some HTML, each a name and its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, name):
        return [attrs for tag, attrs in self.found if tag == name]


def costs(marked="gpt2"):
    every = [Cost(model, method, Count(), Held()) for model in MODELS for method in METHODS]
    return costs_html(every, marked, 8)


def test_a_model_names_all_its_rows():
    """Each name spans the rows of its methods, and every head says what it is the head of."""
    tags = Tags(costs())
    names = [head for head in tags.named("th") if head.get("scope") == "rowgroup"]
    assert [head["rowspan"] for head in names] == [str(len(METHODS))] * len(MODELS)
    assert len(tags.named("tr")) == 1 + len(MODELS) * len(METHODS)
    assert len([head for head in tags.named("th") if head.get("scope") == "row"]) == len(
        MODELS
    ) * len(METHODS)
    assert all(head.get("scope") for head in tags.named("th"))


def test_the_chosen_model_is_marked_without_colour():
    """One body of rows is on, and a screen reader hears which."""
    tags = Tags(costs("gpt2-xl"))
    assert [body.get("class") for body in tags.named("tbody")].count("on") == 1
    (current,) = [head for head in tags.named("th") if "aria-current" in head]
    assert current["scope"] == "rowgroup"
    assert f'aria-current="true">{MODELS["gpt2-xl"].label}</th>' in costs("gpt2-xl")


def summary(label):
    test = {"accuracy": 0.9, "interval": [0.88, 0.92], "tn": 140, "tp": 130, "size": 300}
    done = Finished(298, 41.0, 55.0, 0.99, None, test, test, 310.0)
    began = Started(298, 149, 1195, 100, 299, 3, 9, 147_970, 4_421_634, "cpu", 2, 0)
    return RunSummary("a", label, "finished", 0.0, RunConfig(), began, done)


def test_every_run_is_the_head_of_its_row():
    """Its name is text, whatever it is."""
    html = runs_html(marked([summary("mine")], [summary(HOSTILE)]))
    assert "<img" not in html
    heads = Tags(html).named("th")
    assert all(head.get("scope") for head in heads)
    assert [head["scope"] for head in heads].count("row") == 2


def test_chart_and_table_share_their_marks():
    """One's own runs have the numbers that they have in the tab Train, unfinished ones counted."""
    waiting = replace(summary("waiting"), finished=None)
    runs = marked([summary("new"), waiting, summary("old")], [summary("shipped")])
    assert {mark: run.label for mark, run in runs.items()} == {
        "3": "new",
        "1": "old",
        "A": "shipped",
    }
    assert [point.mark for point in points(runs)] == ["3", "1", "A"]
    html = runs_html(runs)
    assert all(f">{mark}. {run.label}</th>" in html for mark, run in runs.items())
    assert html.count(">yours<") == 2 and html.count(">bundled<") == 1


def test_the_key_shows_the_shapes_of_the_chart():
    """Colour never stands alone."""
    shown = dict(zip(METHODS, ("l", "h", "all"), strict=True))
    for method, label in METHODS.items():
        _, shape = METHOD_MARKS[method]
        assert f'<i class="{shown[method]} {shape}"></i>{label}</span>' in RUNS_TITLE
