"""The Classify tab: a trained model on messages that people type, and why it says what it says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
from gradio.context import get_render_context

from lora_gpt import plots
from lora_gpt.service import SAMPLE, Service
from lora_gpt.ui import classify_view as view
from lora_gpt.ui.chart import chart
from lora_gpt.ui.classify_many import build_many
from lora_gpt.ui.classify_one import (
    FIRST_MESSAGE,
    UNASKED,
    Asked,
    Stage,
    answer,
    at_strength,
    cleared,
    draw,
    explain,
    stage,
    unexplained,
)
from lora_gpt.ui.classify_runs import NO_RUN, choices, preferred
from lora_gpt.ui.errors import guard
from lora_gpt.ui.session import PRIVATE, REDRAW, TICK, Session

# A click while the model is still busy with the last message counts: the newest wins.
ASK: dict[str, Any] = PRIVATE | {"show_progress": "minimal", "trigger_mode": "always_last"}


def build_tab(service: Service, session: Session) -> None:
    """Fill the tab; call it inside `gr.Tab`."""
    tab = get_render_context()
    assert isinstance(tab, gr.Tab), "the tab fills the gr.Tab that it is called in"
    known = gr.State([])
    with gr.Row(elem_classes="grid"):
        with gr.Column(elem_classes="controls", scale=2, min_width=300):
            run = _run_choice(service)
            message, send, examples = _questions()
        with gr.Column(elem_classes="stage", scale=3, min_width=300):
            on = stage()
    build_many(service, run)
    changes = _changes()

    taken = gr.on([each.click for each in examples], take, None, message, **TICK)
    _wire(service, on, (run, message), [partial(gr.on, [send.click, message.submit]), taken.then])

    @guard
    def refresh(
        owner: str, own_run: str, current: str | None, before: list[str], request: gr.Request
    ) -> list[Any]:
        looked_at = request.query_params.get("run", "") or own_run  # a link goes first, as in Train
        listed = choices(service, owner, looked_at)
        value = preferred(listed, current, looked_at, before)
        return [gr.Dropdown(choices=listed, value=value), [run_id for _, run_id in listed]]

    @guard
    def describe(run_id: str | None) -> list[Any]:
        return _described(service, run_id)

    looked = [session.owner, session.run, run, known]
    opened = tab.select(refresh, looked, [run, known], **TICK)
    for chosen in (opened.then, run.input):
        begun = _begin(service, on, (run, message), chosen)
        begun.then(describe, run, changes, **REDRAW)
    gr.api(guard(classify_with(service)), api_name="classify")


Question = tuple[gr.Dropdown, gr.Textbox]
"""The classifier that is asked, and the message."""


def take(event: gr.EventData) -> str:
    """The message of the example that was pressed."""
    assert isinstance(event.target, gr.Button), "only examples are wired to this"
    return str(event.target.value)


def _wire(service: Service, on: Stage, question: Question, triggers: list[Any]) -> None:
    """Whatever asks a question, and the slider below the answer."""

    def ask(run_id: str | None, text: str) -> dict[Any, Any]:
        return answer(service, on, run_id, text)

    @guard
    def louder(asked: Asked | None, strength: float | None) -> dict[Any, Any]:
        return at_strength(service, on, asked, strength)

    for trigger in triggers:
        asked = trigger(ask, [*question], on.components(), show_progress_on=on.stale(), **ASK)
        _explained(service, on, asked)
    # `input` would not hear of the button that puts it back, nor of a number that is cut to fit.
    on.strength.change(louder, [on.asked, on.strength], on.components(), **REDRAW)


def _begin(service: Service, on: Stage, question: Question, trigger: Any) -> Any:
    """The tab is opened or another classifier chosen: its last event."""

    def begin(run_id: str | None, text: str, asked: Asked | None) -> dict[Any, Any]:
        if not run_id:
            return cleared(on, NO_RUN)
        if asked and asked.run == run_id:
            return {on.asked: asked}
        if not text.strip():
            return cleared(on, UNASKED)
        return answer(service, on, run_id, text)

    looked = [*question, on.asked]
    begun = trigger(begin, looked, on.components(), show_progress_on=on.stale(), **ASK)
    return _explained(service, on, begun)


def _explained(service: Service, on: Stage, answered: Any) -> Any:
    """After an answer its words and its curve: the last event."""

    def words(asked: Asked | None) -> Any:
        return explain(service, asked)

    @guard
    def curve(asked: Asked | None) -> list[Any]:
        return draw(service, asked)

    explained = answered.success(words, on.asked, on.words, **REDRAW)
    explained.failure(unexplained, on.asked, on.words, **REDRAW)
    return explained.then(curve, on.asked, [on.asked, on.curve], **REDRAW)


def _run_choice(service: Service) -> gr.Dropdown:
    options = choices(service, "", "")
    return gr.Dropdown(
        options,
        value=next((run_id for _, run_id in options), None),
        label="Classifier",
        info="A trained adapter over its frozen base: a sample, a run of yours or a linked one.",
        filterable=False,
    )


def _questions() -> tuple[gr.Textbox, gr.Button, list[gr.Button]]:
    """The message to type, and examples of both classes to take."""
    message = gr.Textbox(
        FIRST_MESSAGE,
        label="Message",
        lines=4,
        max_lines=10,
        placeholder="Type or paste a message",
        elem_id="message",
    )
    send = gr.Button("Classify", variant="primary")
    examples = []
    for kind, heading in ((True, "Examples of spam"), (False, "Examples of ham")):
        look = ["example", "spam" if kind else "ham"]
        with gr.Column(elem_classes="examples"):
            gr.HTML(f"<h3>{heading}</h3>")
            for text in (text for is_spam, text in view.EXAMPLES if is_spam == kind):
                examples.append(gr.Button(text, size="sm", elem_classes=look))
    return message, send, examples


def _changes() -> list[gr.HTML]:
    """What the adapter changed: a sentence, the chart and the table."""
    with gr.Column(elem_classes="card", elem_id="changes"):
        gr.HTML("<h3>What the adapter changed</h3>")
        sentence = gr.HTML("")
        sizes = chart(
            "Size of the update of each layer",
            height=240,
            empty="Choose a classifier that was trained with LoRA.",
        )
        with gr.Accordion("Every layer, with its singular values", open=False):
            table = gr.HTML("")
    return [sentence, sizes, table]


def _described(service: Service, run_id: str | None) -> list[Any]:
    """What the adapter of `run_id` changed, for the components of `_changes`."""
    updates = service.updates(run_id) if run_id else []
    layers = [(view.short(each.path), each.size, each.spectrum) for each in updates]
    said = view.updates_sentence(updates) if run_id else ""
    drawn = plots.update_sizes(layers) if layers else None
    return [f"<p class='told'>{said}</p>", drawn, view.updates_html(updates)]


def classify_with(service: Service) -> Callable[..., list[dict[str, Any]]]:
    """The function that the API publishes."""

    def classify(texts: list[str], run: str = SAMPLE) -> list[dict[str, Any]]:
        """Say for each text whether it is spam.

        `texts` holds 1 to 2,000 messages of at most 20,000 characters; `run` is the id of a
        finished run, or "sample" for the bundled one. Returns {"text", "label", "p_spam"} for
        each, in order: label is "spam" or "ham", p_spam the probability of spam from 0 to 1.
        """
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("texts: must be a list of texts")
        return [
            {"text": each.text, "label": each.label, "p_spam": each.p_spam}
            for each in service.classify(run, texts)
        ]

    return classify
