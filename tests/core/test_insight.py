"""Words, strength and spectra, against what can be worked out by hand."""

from contextlib import nullcontext

import pytest
import torch

from lora_gpt.config import GPTConfig, LoRAConfig
from lora_gpt.core import insight, tokenizer
from lora_gpt.core.classify import Classifier
from lora_gpt.core.insight import strength_curve, updates, word_attributions
from lora_gpt.core.lora import lora_layers, prepare, set_strength
from lora_gpt.core.model import GPTModel, initialise

CFG = GPTConfig(4096, 256, 24, 3, 2)
TEXT = "WIN a prize now,  call \n 0800"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classifier_of(method="lora", lora=LoRAConfig(rank=4, alpha=8.0)):
    """A small classifier in which every trained number was moved."""
    model = prepare(initialise(GPTModel(CFG), 0), method, lora, 0).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    return Classifier(model, tokenizer.load("mini"))


@pytest.fixture(scope="module")
def classifier():
    return classifier_of()


def p_spam(classifier, text):
    return classifier.verdicts([text])[0].p_spam


def test_a_word_weighs_what_is_missed_without_it(classifier):
    """Worked out by hand: the message with the word, less the message without."""
    shorter = {
        "WIN": "a prize now,  call \n 0800",
        "a": "WIN prize now,  call \n 0800",
        "prize": "WIN a now,  call \n 0800",
        "now,": "WIN a prize call \n 0800",
        "call": "WIN a prize now,  0800",
        "0800": "WIN a prize now,  call",
    }
    found = word_attributions(classifier, TEXT)
    assert [word.text for word in found] == [*shorter]
    for word in found:
        assert word.without == pytest.approx(p_spam(classifier, shorter[word.text]), abs=1e-6)
        whole = p_spam(classifier, TEXT)
        assert word.weight == pytest.approx(whole - word.without, abs=1e-6)
    assert any(abs(word.weight) > 1e-4 for word in found)


def test_an_only_word_is_weighed_against_an_empty_message(classifier):
    (only,) = word_attributions(classifier, "  prize ")
    assert only.without == pytest.approx(p_spam(classifier, ""), abs=1e-6)


def test_a_long_message_is_tried_for_its_first_words(classifier, monkeypatch):
    """The limit keeps the answer quick; all words are still read."""
    monkeypatch.setattr(insight, "MOST_WORDS", 2)
    found = word_attributions(classifier, TEXT)
    assert [word.text for word in found] == ["WIN", "a"]
    assert found[0].without == pytest.approx(
        p_spam(classifier, "a prize now,  call \n 0800"), abs=1e-6
    )


def test_strength_0_is_the_base_under_the_head(classifier):
    """At 0 the updates are silent, at 1 the model says what it was trained to say."""
    points = dict(strength_curve(lambda: nullcontext(classifier), TEXT, [0.0, 0.5, 1.0, 2.0]))
    plain = classifier_of(lora=LoRAConfig(rank=4, alpha=8.0))
    with torch.no_grad():
        plain.model.out_head.load_state_dict(classifier.model.out_head.state_dict())
        for _, layer in lora_layers(plain.model):
            layer.lora.B.zero_()
    assert points[0.0] == pytest.approx(p_spam(plain, TEXT), abs=1e-6)
    assert points[1.0] == pytest.approx(p_spam(classifier, TEXT), abs=1e-6)
    assert len({round(p, 4) for p in points.values()}) == 4


@pytest.mark.parametrize("at_once", [1, 2, 21])
def test_the_curve_is_what_each_strength_says_alone(classifier, at_once):
    """However many of them go through the model at once."""
    most = at_once * len(classifier.encode([TEXT])[0])
    strengths = [step / 10 for step in range(21)]
    expected = []
    for strength in strengths:
        set_strength(classifier.model, strength)
        expected.append((strength, pytest.approx(p_spam(classifier, TEXT), abs=1e-6)))
    assert strength_curve(lambda: nullcontext(classifier), TEXT, strengths, most) == expected


def test_the_curve_leaves_the_model_at_strength_1(classifier):
    """Also where it was interrupted."""
    set_strength(classifier.model, 0.3)
    with pytest.raises(TypeError):
        strength_curve(lambda: nullcontext(classifier), TEXT, [0.5, "loud"])
    assert {layer.strength for _, layer in lora_layers(classifier.model)} == {1.0}
    strength_curve(lambda: nullcontext(classifier), TEXT, [0.0])
    assert {layer.strength for _, layer in lora_layers(classifier.model)} == {1.0}


@pytest.mark.parametrize(
    "lora", [LoRAConfig(rank=4, alpha=8.0), LoRAConfig(rank=3, alpha=5.0, rank_stabilised=True)]
)
def test_the_spectrum_is_that_of_the_whole_update(lora):
    """Worked out over r x r, equal to the singular values of the (out, in) matrix."""
    model = classifier_of(lora=lora).model
    found = updates(model)
    layers = dict(lora_layers(model))
    assert [each.path for each in found] == [*layers] and len(found) == 12
    for each in found:
        layer = layers[each.path]
        values = torch.linalg.svdvals(layer.update().detach())
        assert len(each.spectrum) == lora.rank
        assert each.spectrum == pytest.approx(values[: lora.rank].tolist(), rel=1e-4)
        assert values[lora.rank :].max() < 1e-4
        size = layer.update().detach().norm() / layer.linear.weight.detach().norm()
        assert each.size == pytest.approx(float(size), rel=1e-4)


def test_the_spectrum_does_not_depend_on_strength(classifier):
    """What training changed is one thing, how loudly it is played another."""
    before = updates(classifier.model)
    set_strength(classifier.model, 0.5)
    assert updates(classifier.model) == before
    set_strength(classifier.model, 1.0)


def test_before_training_there_is_no_update():
    """B starts at 0."""
    model = prepare(initialise(GPTModel(CFG), 0), "lora", LoRAConfig(rank=2), 0)
    assert {each.size for each in updates(model)} == {0.0}
    assert updates(classifier_of("head").model) == []
