"""One message in the Classify tab: verdict, words, and the strength of the adapter."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from lora_gpt import plots
from lora_gpt.service import Service, Verdict
from lora_gpt.ui import classify_view as view
from lora_gpt.ui.chart import chart
from lora_gpt.ui.classify_runs import NO_RUN
from lora_gpt.ui.errors import complaint
from lora_gpt.ui.session import spoken

FIRST_MESSAGE = view.EXAMPLES[0][1]
UNASKED = "Type a message and press Classify, or take an example."
STRENGTH_HELP = (
    "What the adapter adds is multiplied by this. At 0 only the frozen base and the trained head"
    " speak, at 1 the model as it was trained, above 1 the update is exaggerated."
)
NO_LORA = "This run trained no LoRA, so there is no adapter to turn up or down."
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
    lora: bool = True
    """Whether the run has an adapter to turn up and down."""
    told: bool = False
    """Whether its words and its curve are on show, too."""
    points: tuple[tuple[float, float], ...] = ()
    """p_spam by strength; empty until it is known."""


@dataclass(frozen=True)
class Stage:
    """The components that an answer is shown in."""

    asked: gr.State
    verdict: gr.HTML
    said: gr.HTML
    """The verdict in a sentence that is read out; of the other HTML nothing is."""
    words: gr.HTML
    adjust: gr.Column
    """Slider and curve, for a run with an adapter."""
    strength: gr.Slider
    curve: gr.HTML
    fixed: gr.HTML
    """What stands there for a run without one."""

    def components(self) -> list[Any]:
        return list(vars(self).values())

    def stale(self) -> list[Any]:
        """What tells of the message before while the model is busy with the next; it is dimmed."""
        return [self.verdict, self.words, self.curve]


def _empty(sentence: str) -> str:
    return f"<p class='empty'>{sentence}</p>"


def stage() -> Stage:
    """The right side of the tab: verdict, words, strength."""
    asked = gr.State(None)
    verdict = gr.HTML(_empty(UNASKED), elem_classes="card", elem_id="verdict")
    said = spoken("verdict-said")
    words = gr.HTML(
        "",
        html_template="${value}",
        js_on_load=WORDS_SCRIPT,
        elem_classes="card",
        elem_id="words",
        visible="hidden",  # one that comes later does not hear that the wait is over
    )
    with gr.Column(elem_classes="card", elem_id="strength") as adjust:
        strength = gr.Slider(
            0, 2, 1, step=0.05, label="Strength of the adapter", info=STRENGTH_HELP
        )
        curve = chart(
            "Probability of spam over the strength of the adapter",
            height=210,
            empty="The curve of this message over the strength will stand here.",
        )
    fixed = gr.HTML(
        f"<p class='sub small'>{NO_LORA}</p>",
        elem_classes="card",
        elem_id="no-strength",
        visible=False,
    )
    return Stage(asked, verdict, said, words, adjust, strength, curve, fixed)


# The answer comes in three events and not as one generator: of steps that follow each other at
# once, the page loses some.


def answer(service: Service, on: Stage, run: str | None, text: str) -> dict[Any, Any]:
    """Ask `run` about `text` and show the verdict; words and curve are `explain`ed after it.

    Nothing of the message before stays, and where this one is refused the sentence that says why
    stands in the place of the verdict.
    """
    try:
        if not run:
            raise ValueError(NO_RUN)
        after, before = service.classify(run, [text])[0], service.classify_before(run, [text])[0]
        lora = service.find(run).config.training.method == "lora"
    except (ValueError, OSError) as error:
        return cleared(on, complaint(error))
    return {
        on.asked: Asked(run, text, before, lora),
        on.verdict: view.verdict_html(after, before),
        on.said: view.told_html(after),
        on.words: gr.HTML(view.pending_html(text), visible=True),
        on.adjust: gr.Column(visible=lora),
        on.strength: 1.0,
        on.curve: None,
        on.fixed: gr.HTML(visible=not lora),
    }


def cleared(on: Stage, sentence: str) -> dict[Any, Any]:
    """No message on show: `sentence`, which is HTML, stands in the place of the verdict."""
    return {
        on.asked: None,
        on.verdict: _empty(sentence),
        on.said: sentence,
        on.words: gr.HTML("", visible="hidden"),
        on.strength: 1.0,
        on.curve: None,
    }


def explain(service: Service, asked: Asked | None) -> Any:
    """The words of the message on show; nothing changes where they are there already.

    A refusal is said in their place, so that the wait has an end. It is no error of the event: in
    Gradio nothing but `failure` follows one, and the curve would not be drawn.
    """
    if asked is None or asked.told:
        return gr.skip()
    try:
        found = service.attributions(asked.run, asked.text)
    except (ValueError, OSError) as error:
        return view.unexplained_html(asked.text, complaint(error))
    return view.words_html(found, len(asked.text.split()), asked.lora)


def unexplained(asked: Asked | None) -> Any:
    """What stands at the words where `explain` broke down, rather than a wait for ever."""
    return gr.skip() if asked is None else view.unexplained_html(asked.text)


def draw(service: Service, asked: Asked | None) -> list[Any]:
    """The curve of the message on show over the strength, which stands at 1."""
    if asked is None or asked.told:
        return [gr.skip(), gr.skip()]
    if not asked.lora:
        return [replace(asked, told=True), None]
    points = tuple(service.strength_curve(asked.run, asked.text))
    p_spam = dict(points)[1.0]
    return [replace(asked, told=True, points=points), plots.strength_curve(points, 1.0, p_spam)]


def at_strength(
    service: Service, on: Stage, asked: Asked | None, strength: float | None
) -> dict[Any, Any]:
    """The message on show with the adapter at another strength; None comes from a box that is empty
    for a moment."""
    if asked is None or strength is None:
        return {on.asked: asked}
    after = service.classify(asked.run, [asked.text], strength)[0]
    shown: dict[Any, Any] = {
        on.verdict: view.verdict_html(after, asked.before, strength),
        on.said: view.told_html(after, strength),
    }
    if asked.points:
        shown[on.curve] = plots.strength_curve(asked.points, strength, after.p_spam)
    return shown
