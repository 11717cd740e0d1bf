"""Texts to verdicts: order, batches, cut messages, and models that share their weights."""

import math

import pytest
import torch

from lora_gpt.config import GPTConfig, LoRAConfig
from lora_gpt.core import classify, tokenizer
from lora_gpt.core.classify import (
    BATCH_TOKENS,
    Classifier,
    batches,
    logits_in_parts,
    logits_of,
    pack,
    share,
    spam_probabilities,
    verdict,
)
from lora_gpt.core.lora import lora_layers, prepare
from lora_gpt.core.model import GPTModel, initialise

CFG = GPTConfig(4096, 32, 24, 3, 2)
TEXTS = ["ok", "", "see you at ten by the old gate " * 9, "WIN £1,000 now!", "the blue folder"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    """A small classifier that has something to say: B is not 0 any more."""
    built = prepare(initialise(GPTModel(CFG), 0), "lora", LoRAConfig(rank=4), 0)
    torch.manual_seed(1)
    for parameter in built.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3)
    return built.eval()


@pytest.fixture(scope="module")
def classifier(model):
    return Classifier(model, tokenizer.load("mini"))


def test_verdicts_come_in_the_order_of_the_texts(classifier):
    """Batches are made by length; the answer does not show it."""
    found = classifier.verdicts(TEXTS)
    alone = [classifier.verdicts([text])[0] for text in TEXTS]
    assert [each.text for each in found] == TEXTS
    assert [each.label for each in found] == [each.label for each in alone]
    assert [e.p_spam for e in found] == pytest.approx([e.p_spam for e in alone], abs=1e-6)
    assert len({round(each.p_spam, 4) for each in found}) == len(TEXTS)


def test_a_message_that_does_not_fit_is_flagged(classifier):
    """One that just fits is not; the end of a longer one changes nothing."""
    encoding = classifier.encoding
    tokens = encoding.encode_ordinary("old " * 60)
    fits, longer = (encoding.decode(tokens[:size]) for size in (31, 32))  # and the line's end
    assert [len(encoding.encode_ordinary(text)) for text in (fits, longer)] == [31, 32]
    one, other = classifier.verdicts([fits, longer])
    assert (one.truncated, other.truncated) == (False, True)
    assert one.p_spam == pytest.approx(other.p_spam, abs=1e-6)


def test_max_tokens_shortens_what_is_read(model):
    """The limit of a run counts as the model's own context does."""
    short = Classifier(model, tokenizer.load("mini"), 3)
    assert short.encode(["see you at ten by the old gate"])[0] == short.encode(["see you at"])[0]
    assert short.verdicts(["see you at ten by the old gate"])[0].truncated


def test_half_is_spam():
    """The border belongs to spam, as in the metrics."""
    assert verdict("a", 0.5).label == "spam"
    assert verdict("a", math.nextafter(0.5, 0)).label == "ham"


def test_batches_hold_every_place_once_within_the_limit():
    """Pads counted: the longest times the number of messages."""
    lengths = [1, 256, 3, 77, 256, 12, 1, 200] * 40
    sequences = [[0] * length for length in lengths]
    found = batches(sequences, BATCH_TOKENS)
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) * max(lengths[place] for place in batch) <= BATCH_TOKENS
    assert len(found) < len(lengths) / 4


def test_a_message_longer_than_a_batch_goes_alone():
    """Nothing is left out because it is long."""
    found = batches([[0] * (BATCH_TOKENS + 1), [0]], BATCH_TOKENS)
    assert sorted(found) == [[0], [1]]
    assert batches([], BATCH_TOKENS) == []


def test_small_batches_give_the_same_verdicts(classifier, monkeypatch):
    """How the messages are grouped is a matter of speed alone."""
    together = spam_probabilities(classifier.model, classifier.encode(TEXTS))
    monkeypatch.setattr(classify, "BATCH_TOKENS", 1)
    apart = spam_probabilities(classifier.model, classifier.encode(TEXTS))
    assert together == pytest.approx(apart, abs=1e-6)


def test_asking_leaves_the_model_in_its_mode(model):
    """Training goes on in training mode after a look at the validation part."""
    for mode in (True, False):
        model.train(mode)
        logits = logits_of(model, [[1, 2], [3]])
        assert model.training is mode and not logits.requires_grad
        assert logits.shape == (2, 2)


def test_whoever_stops_asking_leaves_the_model_in_its_mode(model, monkeypatch):
    """Between two batches of many; gradients are on again, too."""
    monkeypatch.setattr(classify, "BATCH_TOKENS", 2)
    model.train()
    going = logits_in_parts(model, [[1, 2], [3], [4, 5]])
    assert next(going) == 1 and torch.is_grad_enabled() and not model.training
    going.close()
    assert model.training
    model.eval()


def test_no_text_is_no_verdict(classifier):
    assert classifier.verdicts([]) == []


def test_pack_lays_the_tokens_end_to_end():
    tokens, packing = pack([[5, 6], [7], [8, 9, 1]], torch.device("cpu"))
    assert tokens.tolist() == [5, 6, 7, 8, 9, 1]
    assert packing.last.tolist() == [1, 2, 5]


def test_a_shared_model_has_the_same_weights_and_a_tree_of_its_own():
    """Injecting into one leaves the other as it was, and no number is copied."""
    base = initialise(GPTModel(CFG), 0).requires_grad_(False)
    names = dict(base.named_parameters())
    first, second = (
        prepare(share(base), method, LoRAConfig(rank=2), 0) for method in ("lora", "head")
    )
    assert [*dict(base.named_parameters())] == [*names]
    assert not list(lora_layers(base)) and not list(lora_layers(second))
    for other in (first, second):
        assert other.tok_emb.weight.data_ptr() == base.tok_emb.weight.data_ptr()
    wrapped = first.trf_blocks[0].att.W_query.linear.weight
    assert wrapped.data_ptr() == base.trf_blocks[0].att.W_query.weight.data_ptr()
