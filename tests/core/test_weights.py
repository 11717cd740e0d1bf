"""Base weights: random, bundled, from folders and files, under our names and GPT-2's."""

import json
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from lora_gpt.config import MODELS, GPTConfig, ModelSpec, RunConfig
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.packing import Packing
from lora_gpt.core.weights import (
    BUNDLED,
    LARGEST_FILE,
    WeightsError,
    load_base,
    read_base,
    save_base,
)
from lora_gpt.events import Progress

CFG = GPTConfig(97, 32, 24, 3, 2)


def loaded(config, **places):
    """(the model, what was said on the way) of a generator that runs to its end."""
    said, generator = [], load_base(config, **places)
    while True:
        try:
            said.append(next(generator))
        except StopIteration as end:
            assert all(isinstance(each, Progress) for each in said)
            return end.value, said


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Models of the same names, small enough to be made in a test."""
    monkeypatch.setitem(MODELS, "mini", ModelSpec("mini (bundled)", CFG, encoding="mini"))
    monkeypatch.setitem(MODELS, "gpt2", ModelSpec("GPT-2 124M", CFG, "openai-community/gpt2"))


def reference(kind=GPT2Model):
    torch.manual_seed(4)
    return kind(
        GPT2Config(
            vocab_size=CFG.vocab_size,
            n_positions=CFG.context_length,
            n_embd=CFG.emb_dim,
            n_head=CFG.n_heads,
            n_layer=CFG.n_layers,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


def tensors(**changed):
    """GPT-2's checkpoint as it is on the Hub: no prefix, no head, the causal masks along."""
    found = {name: p.detach().clone() for name, p in reference().named_parameters()}
    for block in range(CFG.n_layers):
        found[f"h.{block}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        found[f"h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    return {name: t for name, t in (found | changed).items() if t is not None}


def tied() -> GPTModel:
    model = initialise(GPTModel(CFG), 3)
    model.out_head.weight = model.tok_emb.weight
    return model


def assert_equals_reference(model, theirs):
    tokens = torch.arange(20)[None] % CFG.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


# --- random -------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone():
    """They are those of `initialise`, in evaluation mode; global randomness is left alone."""
    state = torch.get_rng_state()
    model, said = loaded(RunConfig(init="random", seed=8))
    expected = initialise(GPTModel(CFG), 8).state_dict()
    assert said[0].stage == "making random weights for mini (bundled)"
    assert not model.training
    assert all(torch.equal(expected[name], values) for name, values in model.state_dict().items())
    torch.set_rng_state(state)
    loaded(RunConfig(init="random", seed=8))
    assert torch.equal(torch.get_rng_state(), state)


# --- our own files ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_base_comes_back(dtype, tmp_path):
    """float32 bit for bit, bfloat16 rounded once; the tied head is filled from the embedding."""
    model = tied()
    path = save_base(model, tmp_path, dtype)
    assert path == tmp_path / "model.safetensors"
    assert "out_head.weight" not in load_file(path)
    again, said = loaded(RunConfig(model="mini"), bundled=tmp_path)
    assert said[-1].stage == "reading the weights of mini (bundled)"
    for name, values in model.state_dict().items():
        assert torch.equal(again.get_parameter(name), values.to(dtype).float()), name
    assert again.out_head.weight is not again.tok_emb.weight
    assert not again.training


def test_a_loaded_base_can_be_trained_without_touching_its_file(tmp_path):
    """The file is mapped into memory; writing to the model stays in memory."""
    path = save_base(tied(), tmp_path, torch.float32)
    before = path.read_bytes()
    model = read_base(path, CFG)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before
    assert not torch.equal(model.tok_emb.weight, read_base(path, CFG).tok_emb.weight)


def test_a_base_that_is_replaced_does_not_change_in_use(tmp_path):
    """A new file takes the old one's place whole; nothing else is left behind."""
    path = save_base(tied(), tmp_path, torch.float32)
    model = read_base(path, CFG)
    expected = model.pos_emb.weight.clone()
    save_base(initialise(tied(), 99), tmp_path, torch.float32)
    assert torch.equal(model.pos_emb.weight, expected)
    assert [found.name for found in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_saved_base_can_be_read_by_others(tmp_path):
    """Its permissions are those of any new file, so that an installed model is not its maker's."""
    (tmp_path / "any").touch()
    save_base(tied(), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_only_a_tied_head_can_be_left_out(tmp_path):
    """A head of its own would be lost."""
    with pytest.raises(ValueError, match="out_head: must equal tok_emb"):
        save_base(initialise(GPTModel(CFG), 3), tmp_path)


def test_the_bundled_weights_are_the_bundled_models(monkeypatch):
    """The files in the assets fit, every name and shape, and are small enough to be kept there."""
    monkeypatch.undo()
    model, _ = loaded(RunConfig(model="mini"))
    assert model.cfg == MODELS["mini"].config
    sizes = [file.stat().st_size for file in BUNDLED.glob("*.safetensors")]
    assert sizes and max(sizes) < LARGEST_FILE and sum(sizes) < 2 * LARGEST_FILE


# --- several files ------------------------------------------------------------------------------


def test_a_base_in_several_files_is_read_as_one(tmp_path):
    """Each no larger than asked, and the same numbers as from one."""
    index = save_base(tied(), tmp_path, torch.float32, largest=30_000)
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    assert index.name == "model.safetensors.index.json"
    assert len(sizes) > 1 and max(sizes) <= 30_000
    model, _ = loaded(RunConfig(model="mini"), bundled=tmp_path)
    assert all(torch.equal(model.get_parameter(n), p) for n, p in tied().named_parameters())


def test_saving_again_leaves_no_file_of_the_last_time(tmp_path):
    """Several files, then one, then several: what is read is what was saved last."""
    for largest, seed in ((30_000, 1), (LARGEST_FILE, 2), (30_000, 3)):
        expected = initialise(tied(), seed)
        path = save_base(expected, tmp_path, torch.float32, largest)
        assert torch.equal(read_base(path, CFG).pos_emb.weight, expected.pos_emb.weight)
        found = {file.name for file in tmp_path.iterdir()}
        assert (found == {"model.safetensors"}) == (largest == LARGEST_FILE)


def test_a_checkpoint_that_transformers_cut_is_read(tmp_path):
    """By its folder and by its index."""
    theirs = reference(GPT2LMHeadModel)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        model, _ = loaded(RunConfig(model="gpt2", weights=str(source)))
        assert_equals_reference(model, theirs)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": {"x": 3, "y": "a.safetensors"}}',
        b'{"weight_map": {"x": ["a.safetensors"]}}',
        b'{"weight_map": {"x": "../a.safetensors"}}',
        b'{"weight_map": {"x": "/a.safetensors"}}',
        b'{"weight_map": {"x": "a.bin"}}',
        b"[" * 100_000,
        b" " * (2**24 + 1),
    ],
    ids=lambda content: content[:50].decode().strip(),
)
def test_an_index_that_is_none_is_refused(content, tmp_path):
    """Nor may it lead out of its folder."""
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    message = refused(RunConfig(model="gpt2", weights=str(tmp_path)))
    assert "index.json: must be the index of safetensors files beside it" in message


def test_a_file_that_is_missing_beside_its_index_is_named(tmp_path):
    """And so is one that ends early."""
    save_base(tied(), tmp_path, torch.float32, largest=30_000)
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:-4])
    message = refused(RunConfig(model="mini"), bundled=tmp_path)
    assert second.name in message and "must be a whole safetensors file" in message
    second.unlink()
    assert f"{second.name}: must be a safetensors file; got no file." in refused(
        RunConfig(model="mini"), bundled=tmp_path
    )


def test_a_tensor_in_two_files_is_refused(tmp_path):
    """Nobody could say which one counts."""
    save_base(tied(), tmp_path, torch.float32, largest=30_000)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())
    message = refused(RunConfig(model="mini"), bundled=tmp_path)
    assert message.endswith("must stand in one of the files; got two.")


# --- GPT-2's files ------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "transformer."], ids=["bare", "prefixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_gpt2_checkpoint_is_translated(prefix, dtype, tmp_path):
    """With or without prefix, in three precisions: the reference's logits, the head tied."""
    theirs = reference(GPT2LMHeadModel).to(dtype).float()
    contents = {prefix + name: t.to(dtype) for name, t in tensors().items()}
    theirs.transformer.load_state_dict(
        {name.removeprefix(prefix): t.float() for name, t in contents.items()}, strict=False
    )
    save_file(contents, tmp_path / "model.safetensors")
    model, _ = loaded(RunConfig(model="gpt2", weights=str(tmp_path)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.out_head.weight, model.tok_emb.weight)
    assert_equals_reference(model, theirs)


def test_query_key_and_value_are_cut_in_this_order(tmp_path):
    """The columns of c_attn, transposed."""
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    attention, whole = read_base(path, CFG).trf_blocks[1].att, tensors()["h.1.attn.c_attn.weight"]
    for place, linear in enumerate((attention.W_query, attention.W_key, attention.W_value)):
        assert torch.equal(linear.weight, whole[:, 24 * place : 24 * (place + 1)].T)


def test_an_untied_head_is_read(tmp_path):
    """A checkpoint that brings its own output head keeps it."""
    path, head = tmp_path / "model.safetensors", torch.randn(97, 24)
    save_file(tensors(**{"lm_head.weight": head}), path)
    assert torch.equal(read_base(path, CFG).out_head.weight, head)


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_a_fine_tuned_checkpoint_is_read(kind, tmp_path):
    """With two tokens that were added, tied head or none, and a head of its own left out."""
    theirs = reference(kind)
    theirs.resize_token_embeddings(CFG.vocab_size + 2, mean_resizing=False)
    theirs.save_pretrained(tmp_path)
    model, _ = loaded(RunConfig(model="gpt2", weights=str(tmp_path)))
    tokens = torch.arange(20)
    with torch.no_grad():
        hidden = theirs.transformer(tokens[None]).last_hidden_state[0]
        torch.testing.assert_close(model.hidden_states(tokens, Packing([20])), hidden)
    assert model.out_head.weight.shape == (CFG.vocab_size, 24)


def test_a_vocabulary_of_its_own_is_refused(tmp_path):
    """Many rows more are no tokens that were added: another tokenizer numbers them."""
    path = tmp_path / "model.safetensors"
    save_file(tensors(**{"wte.weight": torch.randn(97 + 513, 24)}), path)
    assert "wte.weight: must have shape (97, 24); got (610, 24)" in refused(
        RunConfig(model="gpt2", weights=str(path))
    )


def test_a_description_that_is_too_large_is_not_read(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(" " * 1_000_001)
    assert "must have at most 1,000,000 bytes; got 1,000,001" in refused(
        RunConfig(model="gpt2", weights=str(tmp_path))
    )


def test_a_home_of_nobody_is_refused():
    weights = "~nobody-of-this-name/x"
    assert weights in refused(RunConfig(model="gpt2", weights=weights))


def test_float32_is_mapped_and_not_copied(tmp_path):
    """Transposed and cut weights too: the start of a run reads what it needs when it needs it."""
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    attention = read_base(path, CFG).trf_blocks[0].att
    query, value = attention.W_query.weight, attention.W_value.weight
    assert query.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()


def test_a_folder_of_save_pretrained_is_read(tmp_path):
    """What transformers writes, config and all."""
    theirs = reference(GPT2LMHeadModel)
    theirs.save_pretrained(tmp_path)
    model, _ = loaded(RunConfig(model="gpt2", weights=str(tmp_path)))
    assert_equals_reference(model, theirs)


def test_a_single_file_is_read(tmp_path):
    """Under any name."""
    path = tmp_path / "mine.safetensors"
    save_file(tensors(), path)
    model, _ = loaded(RunConfig(model="gpt2", weights=str(path)))
    assert torch.equal(model.tok_emb.weight, tensors()["wte.weight"])


def test_a_folder_of_our_own_names_is_read(tmp_path):
    """'Weights from' takes what `save_base` wrote."""
    save_base(tied(), tmp_path, torch.float32)
    model, _ = loaded(RunConfig(model="mini", weights=str(tmp_path)))
    assert torch.equal(model.tok_emb.weight, tied().tok_emb.weight)


# --- refusals -----------------------------------------------------------------------------------


def refused(config, **places):
    with pytest.raises(WeightsError) as caught:
        loaded(config, **places)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ln_f.bias": None}, r"ln_f.bias: must have shape \(24,\); got no tensor.$"),
        ({"h.1.ln_1.weight": torch.ones(23)}, r"h.1.ln_1.weight: .* \(24,\); got \(23,\).$"),
        (
            {"h.0.attn.c_attn.weight": torch.ones(72, 24)},
            r"h.0.attn.c_attn.weight: must have shape \(24, 72\); got \(72, 24\).$",
        ),
        (
            {"h.0.mlp.c_fc.weight": torch.ones(24, 97)},
            r"h.0.mlp.c_fc.weight: must have shape \(24, 96\); got \(24, 97\).$",
        ),
        ({"wte.weight": torch.ones(96, 24)}, r"wte.weight: must have shape \(97, 24\)"),
        ({"wte.weight": torch.ones(98, 23)}, r"wte.weight: must have shape \(97, 24\)"),
        ({"lm_head.weight": torch.ones(2, 24)}, r"lm_head.weight: must have shape \(97, 24\)"),
        (
            {"h.2.ln_1.weight": torch.ones(24)},
            r"h.2.ln_1.weight: must not be in model.safetensors; got shape \(24,\).$",
        ),
        (
            {"wpe.weight": torch.ones(32, 24).int()},
            "wpe.weight: must be F32, BF16, F16; got I32.$",
        ),
        (
            {"wpe.weight": torch.full((32, 24), float("nan"))},
            "wpe.weight: must hold finite numbers only; got nan.$",
        ),
        ({"wte.weight": None}, r"wte.weight: must have shape \(97, 24\); got no tensor.$"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tensor_that_does_not_fit_is_named(changed, message, tmp_path):
    """With the shape that was expected and the one that was found."""
    save_file(tensors(**changed), tmp_path / "model.safetensors")
    said = refused(RunConfig(model="gpt2", weights=str(tmp_path)))
    assert re.search(f"^{re.escape(str(tmp_path))}: {message}", said)


@pytest.mark.parametrize("size", [0, 4, 200, 20_000])
def test_a_file_that_ends_early_is_refused(size, tmp_path):
    """In its header or in its numbers."""
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:size])
    message = refused(RunConfig(model="gpt2", weights=str(tmp_path)))
    assert "must be a whole safetensors file" in message
    assert f"{size:,} bytes" in message


class Trap:
    def __reduce__(self):
        return os.abort, ()


def test_a_pickle_is_refused_unopened(tmp_path):
    """Under its own name, under ours, and when a folder holds nothing else."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    for path in (folder / "pytorch_model.bin", tmp_path / "model.safetensors"):
        path.write_bytes(pickle.dumps(Trap()))
        assert "pickle" in refused(RunConfig(model="gpt2", weights=str(path)))
    message = refused(RunConfig(model="gpt2", weights=str(folder)))
    assert "must hold a model.safetensors; got only pytorch_model.bin" in message


def test_a_header_that_starts_like_a_pickle_is_no_pickle(tmp_path):
    """A header of 640 bytes begins with the two bytes of pickle protocol 2."""
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata={"note": "n" * 600})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip().ljust(640 if size <= 640 else 896)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03")
    assert "must have shape" in refused(RunConfig(model="gpt2", weights=str(path)))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"model_type": "llama"},
            "config.json: model_type must be gpt2 for GPT-2 124M; got 'llama'",
        ),
        ({"n_head": 4}, "config.json: n_head must be 3 for GPT-2 124M; got 4"),
        ({"n_layer": 12}, "config.json: n_layer must be 2"),
        ({"n_inner": 100}, "config.json: n_inner must be None or 96"),
        (
            {"vocab_size": 96},
            "config.json: vocab_size must be from 97 to 609 for GPT-2 124M; got 96",
        ),
        ({"vocab_size": 610}, "config.json: vocab_size must be from 97 to 609"),
        ({"vocab_size": "many"}, "config.json: vocab_size must be from 97 to 609"),
        ({"n_layer": "9" * 99}, "got '" + "9" * 59 + "…. Only GPT-2's architecture is read here."),
        ({"n_layer": "many"}, "got 'many'. Only GPT-2's architecture is read here."),
        ({"n_embd": 9999}, "got 9999. Only GPT-2's architecture is read here."),
        ({"n_layer": 12}, "have the shape 24x3x12x32: set it, on the command line with --shape."),
        (
            {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024},
            "These are weights of the size of GPT-2 medium: choose that model (gpt2-medium).",
        ),
        (
            {"activation_function": "relu"},
            "activation_function must be gelu_new or gelu_pytorch_tanh for GPT-2 124M; got 'relu'."
            " Only GPT-2's architecture is read here.",
        ),
        ([], "config.json: model_type must be gpt2"),
    ],
    ids=str,
)
def test_the_config_of_another_model_is_refused(about, message, tmp_path):
    """The number of heads shows in no shape: only the config tells it."""
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert message in refused(RunConfig(model="gpt2", weights=str(tmp_path)))
    # The same where the file itself is named, as the config is beside it all the same.
    file = RunConfig(model="gpt2", weights=str(tmp_path / "model.safetensors"))
    assert refused(file).startswith(str(tmp_path / "config.json")) and message in refused(file)


def test_weights_of_another_shape_are_read(tmp_path):
    """The refusal says how, and then they compute what transformers does with them."""
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=20, n_embd=40, n_head=5, n_layer=3)
    ).eval()
    theirs.save_pretrained(tmp_path)
    config = RunConfig(model="gpt2", weights=str(tmp_path))
    assert "have the shape 40x5x3x20: set it" in refused(config)
    model, said = loaded(config.changed(shape="40x5x3x20"))
    assert said[-1].stage == "reading the weights of GPT-2 of shape 40x5x3x20"
    assert model.cfg == GPTConfig(97, 20, 40, 5, 3)
    assert_equals_reference(model, theirs)


def test_a_file_of_another_size_is_told_which(tmp_path, monkeypatch):
    """By its tensors alone, where nothing lies beside it: a model that has them, or their shape."""
    path = tmp_path / "mine.safetensors"
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=20, n_embd=40, n_head=5, n_layer=3)
    )
    save_file({n: p.detach().clone() for n, p in theirs.named_parameters()}, path)
    config = RunConfig(model="gpt2", weights=str(path))
    said = refused(config)
    assert said.startswith(
        f"{path}: transformer.wte.weight: must have shape (97, 24); got (97, 40)"
    )
    assert "have the shape 40xHEADSx3x20: set it, on the command line with --shape." in said
    other = ModelSpec("mini (bundled)", GPTConfig(7, 32, 24, 3, 2), encoding="mini")
    monkeypatch.setitem(MODELS, "mini", other)
    assert "with --model gpt2 --shape." in refused(config.changed(model="mini"))
    larger = ModelSpec("GPT-2 large", GPTConfig(97, 20, 40, 5, 3), "openai-community/gpt2-large")
    monkeypatch.setitem(MODELS, "gpt2-large", larger)
    assert "of the size of GPT-2 large: choose that model (gpt2-large)." in refused(config)


def test_a_config_that_is_no_json_is_refused(tmp_path):
    """By its path."""
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    assert "config.json: must be JSON" in refused(RunConfig(model="gpt2", weights=str(tmp_path)))


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "./a/b", "a/b/c", "a/b?c", "\0"])
def test_a_source_that_is_nothing_is_refused(source):
    """Neither a folder nor a file nor a repository's name; no network is asked."""
    message = refused(RunConfig(model="gpt2", weights=source))
    assert message.startswith("Weights from: must be a folder, a .safetensors file or")
    assert repr(source) in message


def test_a_missing_bundled_file_is_named(tmp_path):
    """An incomplete installation says which file it lacks."""
    message = refused(RunConfig(model="mini"), bundled=tmp_path)
    assert str(tmp_path / "model.safetensors") in message
