"""Adapter files: written and read exactly, by us and by PEFT, and refused when they do not fit."""

import io
import json
import os
import pickle
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save
from torch import nn

from lora_gpt.config import TARGETS, GPTConfig, RunConfig
from lora_gpt.core.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterError,
    adapter_files,
    apply_adapter,
)
from lora_gpt.core.classify import share
from lora_gpt.core.lora import lora_layers, prepare, replace_head, set_strength
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.packing import Packing

CFG = GPTConfig(97, 32, 24, 3, 2)
TOKENS = torch.arange(12) * 7 % 97
PACKING = Packing([5, 7])
A0 = "base_model.model.trf_blocks.0.att.W_query.lora_A.weight"
HEAD = "base_model.model.out_head.weight"


def base(seed=1) -> GPTModel:
    return initialise(GPTModel(CFG), seed).eval()


def run(**knobs) -> RunConfig:
    return RunConfig().changed(**({"rank": 4, "alpha": 6.0} | knobs))


def trained(config: RunConfig) -> GPTModel:
    """A model whose every trainable number is one that only training could give."""
    model = prepare(base(), config.training.method, config.lora, seed=0).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 0, 0.3, generator=generator)
    return model


def files_of(model: GPTModel, config: RunConfig) -> dict[str, bytes]:
    """What `adapter_files` writes, read again."""
    with TemporaryDirectory() as folder:
        for name, write_file in adapter_files(model, config).items():
            write_file(Path(folder, name))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def files():
    return files_of(trained(run()), run())


def edited(files, drop=(), **fields):
    """The files with fields of the config set, and others dropped."""
    config = json.loads(files[CONFIG_FILE]) | fields
    kept = {name: value for name, value in config.items() if name not in drop}
    return files | {CONFIG_FILE: json.dumps(kept).encode()}


def with_tensors(files, drop=(), **tensors):
    contents = {n: t for n, t in load(files[WEIGHTS_FILE]).items() if n not in drop}
    return files | {WEIGHTS_FILE: save(contents | tensors)}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@torch.no_grad()
def logits(model):
    return model.last_logits(TOKENS, PACKING)


def assert_refused(files, message, model=None):
    """Refused by a sentence of one line, and the model is as it was."""
    model = model or base()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(AdapterError, match=message) as caught:
        apply_adapter(model, files)
    assert "\n" not in str(caught.value)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], values) for name, values in before.items())


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"rank_stabilised": True, "dropout": 0.1},
        {"targets": ["W_value", "ff_out"], "rank": 24, "alpha": 0.5},
        {"method": "head"},
        {"method": "full"},
    ],
    ids=str,
)
def test_what_is_saved_comes_back_bit_for_bit(knobs):
    """Every parameter, every scale and so every logit is the trained model's."""
    config = run(**knobs)
    model, again = trained(config), base()
    apply_adapter(again, files_of(model, config))
    expected, found = model.state_dict(), again.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert torch.equal(logits(again), logits(model))
    assert [(layer.lora.scale, layer.lora.dropout) for _, layer in lora_layers(again)] == [
        (layer.lora.scale, layer.lora.dropout) for _, layer in lora_layers(model)
    ]


def test_the_new_layers_join_the_mode_of_the_model():
    """A model in evaluation stays there whole, so that dropout never speaks in a verdict."""
    config = run(dropout=0.5)
    model = base()
    apply_adapter(model, files_of(trained(config), config))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_a_shared_base_stays_as_it_is(method):
    """Parameters of the base are replaced in the model, never written to."""
    shared, config = base(), run(method=method)
    apply_adapter(share(shared), files_of(trained(config), config))
    expected = base().state_dict()
    assert all(torch.equal(expected[n], values) for n, values in shared.state_dict().items())


def test_strength_does_not_show_in_the_files(files):
    """It is a setting of the moment; the adapter is what was trained."""
    model = trained(run())
    set_strength(model, 0.3)
    assert files_of(model, run()) == files


def test_the_files_of_lora_hold_the_adapter_alone(files):
    """A and B of every target in PEFT's layout, and the head."""
    shapes = {name: tuple(t.shape) for name, t in load(files[WEIGHTS_FILE]).items()}
    assert len(shapes) == CFG.n_layers * len(TARGETS) * 2 + 2
    assert shapes[A0] == (4, 24)
    assert shapes["base_model.model.trf_blocks.1.ff.layers.0.lora_B.weight"] == (96, 4)
    assert shapes[HEAD] == (2, 24)


def test_the_files_of_head_hold_the_head_alone():
    """Two tensors."""
    contents = files_of(trained(run(method="head")), run(method="head"))
    assert sorted(load(contents[WEIGHTS_FILE])) == ["base_model.model.out_head.bias", HEAD]


def test_the_files_of_full_hold_the_whole_model_and_say_so():
    """Under its own names, and with no PEFT type."""
    model, config = trained(run(method="full")), run(method="full")
    contents = files_of(model, config)
    about = json.loads(contents[CONFIG_FILE])
    assert load(contents[WEIGHTS_FILE]).keys() == dict(model.named_parameters()).keys()
    assert about["lora_gpt"]["whole_model"] is True
    assert about["peft_type"] is None


def test_the_config_says_how_to_rebuild_the_model(files):
    """What the page needs to load a base for an adapter that was copied in."""
    config = json.loads(files[CONFIG_FILE])
    own = config["lora_gpt"]
    assert (own["model"], own["init"], own["seed"], own["method"]) == (
        "mini",
        "pretrained",
        42,
        "lora",
    )
    assert own["lora"]["rank"] == config["r"] == 4
    assert config["lora_alpha"] == 6
    assert config["target_modules"] == [
        "W_query",
        "W_key",
        "W_value",
        "out_proj",
        "layers.0",
        "layers.2",
    ]


# --- together with PEFT -------------------------------------------------------------------------


def plain_with_head():
    model = base()
    replace_head(model)
    return model


@pytest.mark.parametrize(
    "knobs", [{}, {"targets": ["ff_in"], "rank_stabilised": True}, {"method": "head"}], ids=str
)
def test_peft_loads_our_folder(knobs, tmp_path):
    """Onto a plain GPTModel with a two-class head: the same logits within 1e-5."""
    config = run(**knobs)
    model = trained(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of our own field, which PEFT then leaves out
        theirs = PeftModel.from_pretrained(
            plain_with_head(), write(tmp_path, files_of(model, config))
        )
    torch.testing.assert_close(logits(theirs.base_model.model), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("targets", "stabilised"),
    [
        (["W_query", "layers.2"], False),
        (["att.W_key"], True),
        (["W_query", "W_key", "W_value", "out_proj", "layers.0", "layers.2"], False),
    ],
    ids=str,
)
def test_we_load_a_folder_that_peft_saved(targets, stabilised, tmp_path):
    """Trained by PEFT on a plain GPTModel: the same logits within 1e-5."""
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        modules_to_save=["out_head"],
        use_rslora=stabilised,
    )
    theirs = get_peft_model(plain_with_head(), config).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 0, 0.3)
            assert "lora_" in name or "out_head" in name
    theirs.save_pretrained(tmp_path)
    ours = base()
    names = (CONFIG_FILE, WEIGHTS_FILE)
    apply_adapter(ours, {name: (tmp_path / name).read_bytes() for name in names})
    expected = logits(theirs.base_model.model)
    assert not torch.allclose(expected, logits(plain_with_head()), atol=1e-2)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


# --- refusals: the tensors ----------------------------------------------------------------------


def test_a_file_that_ends_early_is_refused(files):
    """Wherever it ends."""
    for size in (0, 5, 100, len(files[WEIGHTS_FILE]) - 1):
        cut = files | {WEIGHTS_FILE: files[WEIGHTS_FILE][:size]}
        assert_refused(cut, "must be a whole safetensors file")


class Trap:
    def __reduce__(self):
        return os.abort, ()


def test_a_pickle_in_disguise_is_refused_unopened(files):
    """Opening it would end this very test run."""
    zipped = io.BytesIO()
    torch.save({A0: torch.zeros(4, 24)}, zipped)
    for content in (pickle.dumps(Trap()), pickle.dumps(Trap(), protocol=2), zipped.getvalue()):
        assert_refused(files | {WEIGHTS_FILE: content}, "a pickle can run code")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(files, value):
    """NaN and infinity, by the name of the tensor."""
    tensor = torch.zeros(4, 24)
    tensor[2, 3] = value
    assert_refused(
        with_tensors(files, **{A0: tensor}),
        rf"W_query.lora_A.weight: must hold finite .*; got {value}",
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {A0: torch.zeros(5, 24)},
            r"W_query.lora_A.weight: must have shape \(4, 24\) .* \(5, 24\)",
        ),
        ({A0: torch.zeros(24, 4)}, r"must have shape \(4, 24\) .* \(24, 4\)"),
        ({HEAD: torch.zeros(3, 24)}, r"out_head.weight: must have shape \(2, 24\) .* \(3, 24\)"),
        ({A0: torch.zeros(4, 24).int()}, "must be float32, bfloat16 or float16; got 'torch.int32'"),
        ({"tok_emb.weight": torch.zeros(97, 24)}, "tok_emb.weight: must not be in"),
    ],
    ids=["rank", "transposed", "classes", "whole numbers", "surplus"],
)
def test_a_tensor_that_does_not_fit_is_refused(files, tensors, message):
    """By name, what was expected and what was found."""
    assert_refused(with_tensors(files, **tensors), message)


@pytest.mark.parametrize("name", [A0, HEAD])
def test_a_missing_tensor_is_refused(files, name):
    """The head too: without it there is no verdict."""
    assert_refused(with_tensors(files, drop=[name]), f"{name}: must be in {WEIGHTS_FILE}")


def test_a_rank_that_the_layers_cannot_hold_is_refused(files):
    """Above the width of the model an update of that rank is a waste; nothing is half injected."""
    wide = {}
    for name, tensor in load(files[WEIGHTS_FILE]).items():
        if ".lora_A." in name:
            tensor = torch.zeros(25, tensor.shape[1])
        elif ".lora_B." in name:
            tensor = torch.zeros(tensor.shape[0], 25)
        wide[name] = tensor
    assert_refused(
        edited(with_tensors(files, **wide), r=25), "rank: must be from 1 to 24 .*; got 25"
    )


def test_another_shape_of_base_is_refused(files):
    """Of another width, and with fewer or more blocks."""
    for cfg in (
        GPTConfig(97, 32, 48, 3, 2),
        GPTConfig(97, 32, 24, 3, 1),
        GPTConfig(97, 32, 24, 3, 3),
    ):
        assert_refused(files, "base_model.model", initialise(GPTModel(cfg), 1))


def test_other_weights_of_the_same_shape_are_refused(files):
    """A small adapter of one base means nothing on another."""
    assert_refused(files, r"base: must be the one .* trained on, mini \(pretrained\)", base(seed=2))


def test_a_base_kept_in_half_the_bits_is_the_same_base(files):
    """Rounded to bfloat16 it is still the one that was trained on."""
    model = base()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    apply_adapter(model, files)


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        ([], "0 values"),
        ([0.1], "1 values"),
        ([0.1] * 31, "31 values"),
        ("0.1", "0.1"),
        ([0.1] * 31 + [None], "None"),
        ([0.1] * 31 + [float("nan")], "nan"),
        ([0.1] * 31 + [10**400], "1000"),
        ([0.1] * 31 + [-1e39], "-1e"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_fingerprint_of_the_base_that_is_none_is_refused(files, sample, found):
    """32 numbers that a tensor can hold, or the field is not there at all."""
    about = json.loads(files[CONFIG_FILE])["lora_gpt"]
    rule = r"lora_gpt\.base_sample: must be a list of 32 finite numbers; got '?"
    assert_refused(edited(files, lora_gpt=about | {"base_sample": sample}), rule + found)


def test_a_fingerprint_of_whole_numbers_is_compared(files):
    """JSON does not tell 0 from 0.0."""
    about = json.loads(files[CONFIG_FILE])["lora_gpt"] | {"base_sample": [0] * 32}
    assert_refused(edited(files, lora_gpt=about), "base: must be the one")


def test_an_adapter_on_top_of_an_adapter_is_refused(files):
    """One model carries one."""
    model = base()
    apply_adapter(model, files)
    assert_refused(files, "must not have an adapter yet", model)


# --- refusals: the config -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 8}, r"lora_A.weight: must have shape \(8, 24\) .* \(4, 24\)"),
        ({"r": 0}, "adapter_config.json: rank: must be .*; got 0"),
        ({"r": "4"}, "adapter_config.json: rank: must be .*; got '4'"),
        ({"r": 32}, r"lora_A.weight: must have shape \(32, 24\)"),
        ({"lora_alpha": None}, "adapter_config.json: alpha: must be .*; got None"),
        ({"use_rslora": 1}, "rank_stabilised: must be true or false; got 1"),
        ({"target_modules": []}, "target"),
        ({"target_modules": ["W_query"]}, "must not be in"),
        (
            {"target_modules": ["c_attn"]},
            "target_modules: must name linear layers .*; got 'c_attn'",
        ),
        ({"target_modules": ["out_head"]}, "target_modules: must name linear layers .*'out_head'"),
        ({"target_modules": ".*att.*"}, r"target_modules: must be a list .*; got '\.\*att\.\*'"),
        ({"target_modules": ["trf_blocks.0.att.W_key"]}, "in every block or in none"),
        ({"modules_to_save": None}, r"modules_to_save: must be \[out_head\]"),
        ({"peft_type": "IA3"}, "peft_type: must be LORA; got 'IA3'"),
        ({"bias": "all"}, "bias: must be none; got 'all'"),
        ({"use_dora": True}, "use_dora: must be off"),
        ({"rank_pattern": {"W_key": 2}}, "rank_pattern: must be off"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: must be off"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: .* leaves the base as it is"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow: must be off"),
        ({"lora_gpt": [1]}, "lora_gpt: must be a JSON object"),
        ({"lora_gpt": {"code": "x"}}, "lora_gpt: knows only .*; got 'code'"),
    ],
    ids=str,
)
def test_a_config_that_we_cannot_follow_is_refused(files, fields, message):
    """Never half followed: what changes the numbers is obeyed or refused by name."""
    assert_refused(edited(files, **fields), message)


@pytest.mark.parametrize("name", ["r", "lora_alpha", "target_modules", "modules_to_save"])
def test_a_field_that_is_missing_is_named(files, name):
    """Nothing is guessed."""
    assert_refused(edited(files, drop=[name]), f"must have the field {name}")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * 300_000], ids=lambda c: c[:2]
)
def test_a_config_that_is_no_json_object_is_refused(files, content):
    """Also one that is too deep or too long to be honest."""
    assert_refused(files | {CONFIG_FILE: content}, "adapter_config.json: must be")


def test_a_missing_file_is_named(files):
    """An adapter is both files."""
    assert_refused({CONFIG_FILE: files[CONFIG_FILE]}, WEIGHTS_FILE)
