"""Next-token training on a tiny model: it learns, and a break changes nothing."""

import math
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_gpt.config import GPTConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.pretrain.corpus import SOURCES, STAGES, read_documents
from lora_gpt.core.pretrain.language_model import (
    RECIPES,
    Mixture,
    Recipe,
    _optimizers,
    encode_sources,
    held_out_loss,
    language_loss,
    pretrain,
    read_checkpoint,
    recipe_of,
    stages_in,
)

CFG = GPTConfig(199, 32, 24, 3, 2)
RECIPE = Recipe(
    tokens=8 * 4 * 16,
    rows=4,
    width=16,
    learning_rate=0.01,
    matrix_rate=0.02,
    warmup_steps=2,
)
STILL = replace(RECIPE, tokens=64, learning_rate=0.0, matrix_rate=0.0)
"""A step that moves nothing."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def streams(size, seed=0):
    """A pattern that can be learnt: each source counts upwards from its own start, in lines."""
    (line_break,) = tokenizer.load("mini").encode_ordinary("\n")
    found = {}
    for place, source in enumerate(SOURCES):
        stream = (torch.arange(size) + 7 * place + seed) % 30
        stream[stream % 11 == 7] = line_break
        found[source.file] = stream.to(torch.int16)
    return found


@pytest.fixture
def work(tmp_path):
    """A folder with encoded sources, as the step before leaves it."""

    def made(name="work"):
        folder = tmp_path / name
        folder.mkdir()
        save_file(streams(400), folder / "tokens.train.safetensors")
        save_file(streams(60, seed=3), folder / "tokens.held_out.safetensors")
        return folder

    return made


def weights(folder):
    tensors, _ = read_checkpoint(folder)
    return {name: t for name, t in tensors.items() if name.startswith("model.")}


def test_the_loss_falls(work):
    """From guessing among 199 tokens to far better, in training and on held-out text."""
    recipe = replace(RECIPE, tokens=40 * 64, learning_rate=0.03, matrix_rate=3e-3, warmup_steps=5)
    said = list(pretrain(work(), recipe, CFG))
    assert [each.step for each in said] == list(range(40)) and said[0].steps == 40
    assert said[0].loss == pytest.approx(math.log(199), abs=0.3)
    assert said[-1].loss < said[0].loss / 2
    assert said[-1].held_out is not None and said[-1].held_out < said[0].held_out / 2
    assert [each.step for each in said if each.held_out is not None] == [0, 39]


def test_stop_and_resume_equals_never_stopped(work):
    """Losses, weights and the optimizer's numbers are equal bit for bit."""
    whole, broken = work("whole"), work("broken")
    losses = [each.loss for each in pretrain(whole, RECIPE, CFG)]
    stopped = pretrain(broken, RECIPE, CFG)
    for _ in range(4):  # past the checkpoint of the first step
        next(stopped)
    stopped.close()
    rest = list(pretrain(broken, RECIPE, CFG))
    assert [each.step for each in rest] == list(range(1, 8))
    assert [each.loss for each in rest] == losses[1:]
    (first, about), (second, again) = read_checkpoint(whole), read_checkpoint(broken)
    assert about == again and about["step"] == 8
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_losses(work):
    """Another seed gives other rows and other weights."""

    def losses(name, seed):
        recipe = replace(RECIPE, seed=seed, tokens=3 * 64)
        return [each.loss for each in pretrain(work(name), recipe, CFG)]

    first = losses("first", 0)
    assert first == losses("same", 0) != losses("other", 1)


def test_a_finished_training_is_not_done_again(work):
    """And more tokens go on where it was."""
    folder = work()
    list(pretrain(folder, RECIPE, CFG))
    before = weights(folder)
    assert list(pretrain(folder, RECIPE, CFG)) == []
    assert all(torch.equal(before[name], t) for name, t in weights(folder).items())
    longer = replace(RECIPE, tokens=RECIPE.tokens + 64)
    assert [each.step for each in pretrain(folder, longer, CFG)] == [8]


def test_a_checkpoint_of_another_recipe_is_refused(work):
    folder = work()
    list(pretrain(folder, RECIPE, CFG))
    other = replace(RECIPE, seed=5)
    with pytest.raises(ValueError, match=r"work: .* holds a checkpoint of another recipe"):
        next(pretrain(folder, other, CFG))


def test_a_loss_that_is_not_finite_ends_the_training(work):
    """With the knob that helps."""
    recipe = replace(RECIPE, learning_rate=1e38, warmup_steps=1)
    with pytest.raises(ArithmeticError, match="lower the learning rate"):
        list(pretrain(work(), recipe, CFG))


def test_the_rate_rises_stays_and_falls():
    """Up over the warm-up, down to almost 0 over the last fifth."""
    recipe = Recipe(tokens=100 * 64, rows=4, width=16, warmup_steps=10, fall=0.2)
    rates = [recipe.share_of_rate(step) for step in range(recipe.steps)]
    assert recipe.steps == 100
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


@pytest.mark.parametrize("stage", STAGES)
def test_the_mixture_draws_by_share_and_step(stage):
    """The same step draws the same rows; sources come as often as the stage says."""
    marked = {
        source.file: torch.full((50,), place, dtype=torch.int16)
        for place, source in enumerate(SOURCES)
    }
    mixture = Mixture(marked, Recipe(tokens=1, stage=stage, rows=4000, width=8))
    rows = mixture[3]
    assert rows.shape == (4000, 9) and torch.equal(rows, mixture[3])
    assert not torch.equal(rows, mixture[4])
    for place, source in enumerate(SOURCES):
        found = (rows[:, 0] == place).float().mean().item()
        assert found == pytest.approx(STAGES[stage].get(source.file, 0.0), abs=0.03)


def test_rows_begin_where_lines_and_documents_do():
    """Whatever the source: after a line break, after an end-of-text, or at the very beginning."""
    encoding = tokenizer.load("mini")
    texts = ["Are you in?\nNo, back at 6.\nOk", "WINNER! Call 0909 879 0114\nLast call", "ta"]
    tokens = []
    for text in texts * 9:
        tokens += [*encoding.encode_ordinary(text), encoding.eot_token]
    stream = torch.tensor(tokens, dtype=torch.int16)
    mixture = Mixture(
        {source.file: stream for source in SOURCES}, Recipe(tokens=1, rows=500, width=12)
    )
    begins = {tuple(encoding.encode_ordinary(line)) for text in texts for line in text.split("\n")}
    rows = mixture[0].tolist()
    assert {len(row) for row in rows} == {13}
    for row in rows:
        assert any(tuple(row[: len(line)]) == line[:13] for line in begins)
    firsts = {row[0] for row in rows}
    assert firsts == {line[0] for line in begins}  # and every line has its turn


def test_only_the_matrices_of_the_blocks_are_trained_by_muon():
    """Every parameter by exactly one optimizer; embeddings, biases and LayerNorms by AdamW."""
    model = initialise(GPTModel(CFG), 0)
    model.out_head.weight = model.tok_emb.weight
    muon, adamw = _optimizers(model, RECIPE)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = [names.pop(id(p)) for group in muon.param_groups for p in group["params"]]
    by_adamw = [names.pop(id(p)) for group in adamw.param_groups for p in group["params"]]
    assert not names
    assert all(re.fullmatch(r"trf_blocks\..*\.weight", name) for name in by_muon)
    assert len(by_muon) == 6 * CFG.n_layers and "tok_emb.weight" in by_adamw


def test_a_stage_goes_on_from_the_weights_of_the_one_before(work):
    """With a rate of 0 nothing moves; without the stage before there is nothing to go on from."""
    still = replace(STILL, stage="messages")
    folder = work()
    with pytest.raises(ValueError, match="must hold the stage prose before messages"):
        next(pretrain(folder, still, CFG))
    list(pretrain(folder, RECIPE, CFG))
    before = weights(folder)
    list(pretrain(folder, still, CFG))
    tensors, about = read_checkpoint(folder)
    assert about["recipe"]["stage"] == "messages" and stages_in(folder) == ["prose", "messages"]
    assert all(torch.equal(before[name], tensors[name]) for name in before)


def test_a_share_of_the_rate_is_that_share_of_the_way(work):
    """Half the rate in the recipe, or half of it by warming up: the same first step."""
    one_step = replace(RECIPE, tokens=64)
    rising, halved = work("rising"), work("halved")
    list(pretrain(rising, replace(one_step, warmup_steps=2), CFG))
    recipe = replace(one_step, warmup_steps=1, learning_rate=0.005, matrix_rate=0.01)
    list(pretrain(halved, recipe, CFG))
    moved = weights(rising)
    for name, value in weights(halved).items():
        torch.testing.assert_close(moved[name], value, atol=1e-6, rtol=1e-5)


def test_every_stage_has_a_recipe_and_shares_that_make_a_whole():
    assert RECIPES.keys() == STAGES.keys()
    for stage, shares in STAGES.items():
        assert recipe_of(stage, 10**6).stage == stage
        assert sum(shares.values()) == pytest.approx(1)
        assert shares.keys() <= {source.file for source in SOURCES}


def test_the_loss_is_that_of_the_next_token():
    """Against cross-entropy written out, with the head tied to the embedding."""
    model = initialise(GPTModel(CFG), 0)
    model.out_head.weight = model.tok_emb.weight
    rows = torch.randint(199, (3, 9), generator=torch.Generator().manual_seed(0))
    logits = model(rows[:, :-1])
    chances = logits.log_softmax(-1)
    expected = -torch.stack(
        [chances[b, t, rows[b, t + 1]] for b in range(3) for t in range(8)]
    ).mean()
    assert language_loss(model, rows).item() == pytest.approx(expected.item(), abs=1e-5)


def test_held_out_text_may_be_short():
    """A source with less than a row still counts by its share."""
    model = initialise(GPTModel(CFG), 0)
    found = held_out_loss(model, streams(5), 16)
    assert found == pytest.approx(math.log(199), abs=0.3)


def test_sources_are_encoded_document_by_document(tmp_path):
    """An end-of-text after each, and every document comes back."""
    for source in SOURCES:
        for part in ("train", "held_out"):
            text = f"{part} of {source.file}\0second, 100%"
            (tmp_path / f"{source.file}.{part}.txt").write_text(text, encoding="utf-8")
    encode_sources(tmp_path, tmp_path)
    encoding = tokenizer.load("mini")
    for part in ("train", "held_out"):
        found = load_file(tmp_path / f"tokens.{part}.safetensors")
        for source in SOURCES:
            assert found[source.file].dtype == torch.int16
            text = encoding.decode(found[source.file].tolist())
            assert text.split("<|endoftext|>") == [*read_documents(tmp_path, source, part), ""]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reads_the_same_rows_and_learns_the_same(work):
    """Drawn ahead by other processes, in the same order; a break changes nothing there either."""
    here = [step.loss for step in pretrain(work("here"), RECIPE, CFG)]
    folder = work("there")
    steps = pretrain(folder, RECIPE, CFG, device="cuda")
    there = [next(steps).loss for _ in range(4)]
    steps.close()
    there = there[:1] + [step.loss for step in pretrain(folder, RECIPE, CFG, device="cuda")]
    assert there == pytest.approx(here, abs=0.05)
    assert read_checkpoint(folder)[1]["device"] == "cuda"
