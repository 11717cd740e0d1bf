"""One message in the Classify tab: verdict, words, and the strength of the adapter."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from lora_gpt import plots
from lora_gpt.service import Service, Verdict
from lora_gpt.ui import classify_view as view
from lora_gpt.ui.chart import chart
from lora_gpt.ui.classify_runs import NO_RUN

FIRST_MESSAGE = view.EXAMPLES[0][1]
UNASKED = "<p class='empty'>Type a message and press Classify, or take an example.</p>"
STRENGTH_HELP = (
    "What the adapter adds is multiplied by this. At 0 only the frozen base and the trained head"
    " speak, at 1 the model as it was trained, above 1 the update is exaggerated."
)
WORDS_SCRIPT = """
const words = () => [...element.querySelectorAll('.word')];
const under = (event) => event.target.closest('.word');
const say = (word) => {
  if (!word) return;
  element.querySelector('.says').textContent = word.getAttribute('aria-label');
  for (const each of words()) each.classList.toggle('on', each === word);
};
element.addEventListener('mouseover', (event) => say(under(event)));
element.addEventListener('focusin', (event) => say(under(event)));
element.addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  const all = words(), next = step && under(event) && all[all.indexOf(under(event)) + step];
  if (!next) return;
  event.preventDefault();
  for (const each of all) each.tabIndex = each === next ? 0 : -1;
  next.focus();
});
"""


@dataclass(frozen=True)
class Asked:
    """The message on show, which the slider and another classifier start from."""

    run: str
    text: str
    before: Verdict
    points: tuple[tuple[float, float], ...] = ()
    """p_spam by strength; empty until it is known."""


@dataclass(frozen=True)
class Stage:
    """The components that an answer is shown in."""

    asked: gr.State
    verdict: gr.HTML
    words: gr.HTML
    strength: gr.Slider
    curve: gr.HTML

    def components(self) -> list[Any]:
        return list(vars(self).values())


def stage() -> Stage:
    """The right side of the tab: verdict, words, strength."""
    asked = gr.State(None)
    verdict = gr.HTML(UNASKED, elem_classes="card", elem_id="verdict")
    words = gr.HTML(
        "",
        html_template="${value}",
        js_on_load=WORDS_SCRIPT,
        elem_classes="card",
        elem_id="words",
        visible=False,
    )
    with gr.Column(elem_classes="card", elem_id="strength"):
        strength = gr.Slider(
            0, 2, 1, step=0.05, label="Strength of the adapter", info=STRENGTH_HELP
        )
        curve = chart(
            "Probability of spam over the strength of the adapter",
            height=210,
            empty="The curve of this message over the strength will stand here.",
        )
    return Stage(asked, verdict, words, strength, curve)


# The answer comes in three events and not as one generator: of steps that follow each other at
# once, the page loses some.


def answer(service: Service, on: Stage, run: str | None, text: str) -> dict[Any, Any]:
    """Ask `run` about `text` and show the verdict; words and curve are `explain`ed after it."""
    if not run:
        raise ValueError(NO_RUN)
    after, before = service.classify(run, [text])[0], service.classify_before(run, [text])[0]
    return {
        on.asked: Asked(run, text, before),
        on.verdict: view.verdict_html(after, before),
        on.words: gr.HTML(view.pending_html(text), visible=True),
        on.strength: 1.0,
    }


def explain(service: Service, asked: Asked | None) -> Any:
    """The words of the message on show; nothing changes where they are there already."""
    if asked is None or asked.points:
        return gr.skip()
    found = service.attributions(asked.run, asked.text)
    return view.words_html(found, len(asked.text.split()))


def draw(service: Service, asked: Asked | None) -> list[Any]:
    """The curve of the message on show over the strength, which stands at 1."""
    if asked is None or asked.points:
        return [gr.skip(), gr.skip()]
    points = tuple(service.strength_curve(asked.run, asked.text))
    p_spam = dict(points)[1.0]
    return [replace(asked, points=points), plots.strength_curve(points, 1.0, p_spam)]


def at_strength(
    service: Service, on: Stage, asked: Asked | None, strength: float
) -> dict[Any, Any]:
    """The message on show with the adapter at another strength."""
    if asked is None:
        return {on.asked: None}
    after = service.classify(asked.run, [asked.text], strength)[0]
    shown: dict[Any, Any] = {on.verdict: view.verdict_html(after, asked.before, strength)}
    if asked.points:
        shown[on.curve] = plots.strength_curve(asked.points, strength, after.p_spam)
    return shown
