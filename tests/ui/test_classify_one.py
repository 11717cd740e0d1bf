"""What the Classify tab answers, over a service of plain values."""

from dataclasses import dataclass, replace

import gradio as gr
import pytest

from lora_gpt.config import RunConfig
from lora_gpt.core.classify import Verdict
from lora_gpt.core.insight import Word
from lora_gpt.ui import classify_one as one
from lora_gpt.ui.classify_runs import NO_RUN


@dataclass(frozen=True)
class Run:
    config: RunConfig


class Service:
    """A trained run by one method, which refuses an empty message."""

    def __init__(self, method="lora"):
        self.method = method

    def find(self, run):
        return Run(RunConfig().changed(method=self.method))

    def classify(self, run, texts, strength=1.0):
        if not texts[0].strip():
            raise ValueError("text must hold <one> message")
        return [Verdict(text, "spam", 0.987) for text in texts]

    def classify_before(self, run, texts):
        return [Verdict(text, "ham", 0.4) for text in texts]

    def attributions(self, run, text):
        return [Word(word, 0.3, 0.687) for word in text.split()]

    def strength_curve(self, run, text):
        assert self.method == "lora", "a curve over nothing"
        return [(0.0, 0.4), (1.0, 0.987), (2.0, 0.999)]


@pytest.fixture(scope="module")
def on():
    with gr.Blocks():
        return one.stage()


def test_an_answer_leaves_nothing_of_the_message_before(on):
    """Verdict, words and curve all change at once, the curve to none until it is drawn."""
    shown = one.answer(Service(), on, "a-run", "Pay now")
    assert "98.7%" in shown[on.verdict] and "“Pay now”" in shown[on.said]
    assert "Asking the model" in shown[on.words].value
    assert shown[on.curve] is None and shown[on.strength] == 1.0


@pytest.mark.parametrize(
    ("run", "text", "says"),
    [("a-run", " ", "text must hold &lt;one&gt; message"), (None, "Pay now", NO_RUN)],
)
def test_a_refusal_stands_in_the_place_of_the_verdict(on, run, text, says):
    """It would be taken for the answer to this message if the one before stayed there."""
    shown = one.answer(Service(), on, run, text)
    assert says in shown[on.verdict] and shown[on.said] == says
    assert shown[on.asked] is None and shown[on.curve] is None
    assert shown[on.words].visible == "hidden"


@pytest.mark.parametrize(("method", "adjusts"), [("lora", True), ("head", False), ("full", False)])
def test_only_an_adapter_is_turned_up_and_down(on, method, adjusts):
    """Without LoRA there is no slider, and a sentence that says why."""
    service = Service(method)
    shown = one.answer(service, on, "a-run", "Pay now")
    assert shown[on.adjust].visible is adjusts and shown[on.fixed].visible is not adjusts
    asked, curve = one.draw(service, shown[on.asked])
    assert asked.told and bool(curve) is adjusts
    assert ("strength 1" in one.explain(service, shown[on.asked])) is adjusts


def test_what_is_told_is_not_told_again(on):
    """Coming back to the tab asks the model nothing, whatever the run was trained by."""
    asked = replace(one.answer(Service(), on, "a-run", "Pay now")[on.asked], told=True)
    assert one.explain(Service(), asked) == gr.skip()
    assert one.draw(Service(), asked) == [gr.skip(), gr.skip()]


def test_words_that_were_not_answered(on, monkeypatch):
    """The wait ends with a sentence, whether the model refuses or breaks down."""
    service = Service()
    asked = one.answer(service, on, "a-run", "Pay now")[on.asked]

    def refuse(*asked):
        raise OSError("the run <is> gone")

    monkeypatch.setattr(service, "attributions", refuse)
    assert "did not answer (the run &lt;is&gt; gone)." in one.explain(service, asked)
    assert "did not answer." in one.unexplained(asked)


def test_the_slider_names_its_strength(on):
    """For the eye and for the ear."""
    asked = one.answer(Service(), on, "a-run", "Pay now")[on.asked]
    shown = one.at_strength(Service(), on, asked, 0.3)
    assert "at strength 0.3: 98.7%" in shown[on.verdict]
    assert "at strength 0.3." in shown[on.said] and on.curve not in shown


def test_the_verdict_is_read_out(on):
    """Its region is there before its text, and is all that is read out."""
    assert "role', 'status'" in on.said.js_on_load and "unseen" in on.said.elem_classes
    assert not on.said.value
