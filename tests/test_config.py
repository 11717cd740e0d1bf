import dataclasses
import json
import math

import pytest

from lora_gpt.config import (
    BESIDE,
    DATA_SOURCES,
    GROUPS,
    LEARNING_RATES,
    METHODS,
    MODELS,
    PRESET_LABELS,
    PRESETS,
    TARGETS,
    BadValue,
    GPTConfig,
    LoRAConfig,
    RunConfig,
    TrainingConfig,
    all_knobs,
    architecture,
    compared,
    group_of,
    knobs,
    preset,
    twin_of,
)

OTHER = {
    "model": "gpt2",
    "init": "random",
    "weights": "a/repository",
    "shape": "512x8x4x512",
    "seed": 7,
    "rank": 3,
    "alpha": 2.5,
    "targets": ("W_query", "ff_out"),
    "dropout": 0.25,
    "rank_stabilised": True,
    "data": "sms-spam",
    "text_column": "body",
    "label_column": "kind",
    "spam_label": "junk",
    "balance": False,
    "keep_apart": False,
    "stratify": False,
    "validation_fraction": 0.2,
    "test_fraction": 0.3,
    "method": "head",
    "epochs": 5,
    "max_steps": 9,
    "batch_size": 4,
    "learning_rate": 0.01,
    "schedule": "linear",
    "warmup_fraction": 0.2,
    "weight_decay": 0.0,
    "clip": 0.0,
    "max_tokens": 120,
    "validate_every": 0,
    "checkpoint_every": 7,
    "device": "cpu",
    "precision": "bfloat16",
}
"""For every knob a value that is not its default."""


def numbers() -> list[str]:
    return [name for name, about in all_knobs().items() if about.minimum is not None]


def refused(name: str, value: object) -> BadValue:
    with pytest.raises(BadValue) as caught:
        RunConfig().changed(**{name: value})
    return caught.value


# --- declarations --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", all_knobs())
def test_every_knob_tells_people_what_it_is(name):
    """A label to stand beside it, a sentence of help, and a way to enter it."""
    about = all_knobs()[name]
    assert about.label.strip() == about.label != ""
    assert about.help.endswith(".") and about.help[0].isupper()
    assert all(about.choices.values())


def test_every_field_of_a_run_is_a_knob():
    """Nothing can be set that is not declared; only the groups themselves are no knobs."""
    names = {field.name for field in dataclasses.fields(RunConfig)} - set(GROUPS)
    for group in GROUPS.values():
        names |= {field.name for field in dataclasses.fields(group)}
    assert names == set(all_knobs()) == set(OTHER) == set(RunConfig().flat())


def test_no_two_groups_declare_the_same_name():
    """A knob is known by its own name, so the name must be of one group alone."""
    count = len(knobs(RunConfig)) + sum(len(knobs(group)) for group in GROUPS.values())
    assert count == len(all_knobs())


def test_group_of_finds_the_group():
    assert (group_of("rank"), group_of("data"), group_of("epochs")) == ("lora", "data", "training")
    assert group_of("model") == ""


@pytest.mark.parametrize("name", numbers())
def test_ranges_hold_their_defaults(name):
    about, default = all_knobs()[name], RunConfig().flat()[name]
    assert about.minimum <= default <= (about.maximum or math.inf)


# --- values --------------------------------------------------------------------------------------


def test_defaults_pass_their_own_checks():
    """Every default, given as a value, is taken and stays what it is."""
    assert RunConfig().changed(**RunConfig().flat()) == RunConfig()


@pytest.mark.parametrize("name", all_knobs())
def test_one_knob_changes_one_value(name):
    """The others stay, and the run that was changed stays too."""
    unchanged = before = RunConfig(weights="elsewhere") if name == "shape" else RunConfig()
    after = before.changed(**{name: OTHER[name]})
    different = {key for key, value in after.flat().items() if value != before.flat()[key]}
    assert different == {name} and after.flat()[name] == OTHER[name]
    assert before == unchanged


def test_flat_and_changed_are_inverse():
    config = RunConfig().changed(**OTHER)
    assert config.flat() == OTHER
    assert RunConfig().changed(**config.flat()) == config


@pytest.mark.parametrize("values", [{}, OTHER, *PRESETS.values()])
def test_json_and_back(values):
    """A stored run is the run, also after a round through text."""
    config = RunConfig().changed(**values)
    assert RunConfig.from_json(config.to_json()) == config
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_json_may_leave_out_what_is_default():
    assert RunConfig.from_json({"lora": {"rank": 4}}) == RunConfig().changed(rank=4)


@pytest.mark.parametrize(
    "stored", [{"colour": "red"}, {"lora": {"colour": "red"}}, {"lora": 5}, {"training": None}]
)
def test_unknown_names_are_refused(stored):
    """A name with a slip in it never passes for a default; the known ones are listed."""
    with pytest.raises(BadValue, match=r"config: knows only the knobs model, init, .*; got '"):
        RunConfig.from_json(stored)
    with pytest.raises(BadValue, match="got 'ranks'"):
        RunConfig().changed(ranks=8)


def test_a_config_can_be_a_key():
    """Frozen and hashable: equal runs are one key of a cache."""
    assert {RunConfig(): 1}[RunConfig().changed(targets=list(TARGETS))] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", numbers())
def test_a_number_out_of_range_is_refused(name):
    """With the field, the rule and the value, as data and in the sentence."""
    about = all_knobs()[name]
    for value in [about.minimum - 1] + ([about.maximum + 1] if about.maximum is not None else []):
        error = refused(name, value)
        assert (error.field, error.value) == (name, value)
        assert f"{about.minimum:g}" in error.rule
        assert str(error) == f"{name}: {error.rule}; got {value!r}"


@pytest.mark.parametrize("name", numbers())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "8", None, True, [8]])
def test_what_is_no_number_is_refused(name, value):
    assert refused(name, value).field == name


@pytest.mark.parametrize("name", ["rank", "seed", "epochs", "batch_size", "max_steps"])
def test_a_fraction_is_no_whole_number(name):
    """A slider that sends 8.0 means 8; 8.5 means nothing."""
    assert "must be a whole number" in refused(name, 8.5).rule
    value = RunConfig().changed(**{name: 8.0}).flat()[name]
    assert value == 8 and type(value) is int


def test_a_whole_number_may_stand_for_a_number():
    value = RunConfig().changed(alpha=16).lora.alpha
    assert value == 16 and type(value) is float


@pytest.mark.parametrize("name", ["model", "init", "method", "schedule", "device", "precision"])
def test_a_choice_that_is_not_offered_is_refused(name):
    """The choices are listed, so that one can be taken."""
    error = refused(name, "nonsense")
    assert error.rule == f"must be one of {', '.join(all_knobs()[name].choices)}"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("balance", 1, "must be true or false"),
        ("balance", "no", "must be true or false"),
        ("model", 5, "must be text"),
        ("data", None, "must be text"),
        ("data", "  ", "must name a data set or a file"),
        ("targets", "W_query", "must be a list"),
        ("targets", 5, "must be a list"),
        ("targets", [["W_query"]], "must be taken from W_query, "),
        ("targets", [], "must name at least one of W_query, "),
        ("targets", ["W_query", "W_o"], "must be taken from W_query, "),
    ],
)
def test_a_value_of_another_kind_is_refused(name, value, rule):
    error = refused(name, value)
    assert error.field == name and error.rule.startswith(rule)


def test_targets_come_in_the_order_of_the_block_each_once():
    config = LoRAConfig(targets=["ff_out", "W_query", "ff_out"])
    assert config.targets == ("W_query", "ff_out")


def test_parts_must_leave_something_to_train_on():
    """Validation and test together take 90% at most."""
    with pytest.raises(BadValue, match="validation_fraction: must leave at least 10%") as caught:
        RunConfig().changed(validation_fraction=0.5, test_fraction=0.45)
    assert caught.value.value == 0.5


def test_a_rank_wider_than_the_model_is_refused_by_name():
    """Only where LoRA is trained: the other methods do not look at the rank."""
    width = 16
    narrow = GPTConfig(97, 32, width, 2, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "mini", dataclasses.replace(MODELS["mini"], config=narrow))
        patch.setattr("lora_gpt.config.MODELS", MODELS)
        error = refused("rank", width + 1)
        assert error.rule == f"must be at most {width}, the width of mini"
        assert RunConfig().changed(rank=width + 1, method="head", max_tokens=32)


def test_more_tokens_than_the_model_reads_are_refused():
    error = refused("max_tokens", 257)
    assert error.rule == "must be at most 256, the context of mini"
    shaped = RunConfig(init="random", shape="24x3x12x32")
    with pytest.raises(BadValue, match="must be at most 32, the context of 24x3x12x32"):
        shaped.changed(max_tokens=33)
    assert RunConfig().changed(max_tokens=257, model="gpt2").training.max_tokens == 257


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"])
def test_a_model_without_a_size_is_refused(name):
    sizes = {"vocab_size": 9, "context_length": 8, "emb_dim": 4, "n_heads": 2, "n_layers": 1}
    GPTConfig(**sizes)
    with pytest.raises(BadValue, match=f"{name}: must be at least 1; got 0"):
        GPTConfig(**(sizes | {name: 0}))


def test_heads_must_divide_the_width():
    with pytest.raises(BadValue, match="n_heads: must divide emb_dim 768; got 10"):
        GPTConfig(50257, 1024, 768, 10, 12)


# --- what is fixed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "emb_dim", "n_heads", "n_layers"),
    [
        ("gpt2", 768, 12, 12),
        ("gpt2-medium", 1024, 16, 24),
        ("gpt2-large", 1280, 20, 36),
        ("gpt2-xl", 1600, 25, 48),
    ],
)
def test_the_shapes_of_gpt2(name, emb_dim, n_heads, n_layers):
    """As published: Radford et al. 2019, table 2, and the weights on the Hugging Face Hub."""
    shape = MODELS[name].config
    assert shape == GPTConfig(50257, 1024, emb_dim, n_heads, n_layers, 0.0, True)
    assert MODELS[name].hub == f"openai-community/{name}" and MODELS[name].encoding == "gpt2"


def test_another_shape_keeps_the_vocabulary_of_the_model():
    """And the model is called by it."""
    config = RunConfig(model="gpt2", weights="a/b", shape="768x12x3x512")
    assert config.architecture == architecture("gpt2", "768x12x3x512")
    assert config.architecture == GPTConfig(50257, 512, 768, 12, 3)
    assert config.label == "GPT-2 of shape 768x12x3x512"
    assert architecture("gpt2", "1600x25x48x1024") == MODELS["gpt2-xl"].config
    assert RunConfig(model="gpt2").label == "GPT-2 124M"


@pytest.mark.parametrize(
    "shape",
    [
        "768",
        "768x12x3",
        "768x12x3x1024x1",
        "768 x 12 x 3 x 1024",
        "768x12x3x",
        "x768x12x3x1024",
        "768x12x-3x1024",
        "768x12x3.0x1024",
        "٣x1x1x1",
        "2049x1x1x1",
        "64x65x1x1",
        "64x1x65x1",
        "64x1x1x4097",
        "99999999999999999999x1x1x1",
    ],
)
def test_what_is_no_shape_is_refused(shape):
    """By its form and by its limits, so that no page can be asked for a model beyond all bounds."""
    with pytest.raises(BadValue) as caught:
        RunConfig(model="gpt2", weights="a/b", shape=shape)
    assert (caught.value.field, caught.value.value) == ("shape", shape)
    assert "must be features x heads x blocks x context" in caught.value.rule
    assert "at most 2048 features" in caught.value.rule


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ("768x7x3x1024", "n_heads must divide emb_dim 768"),
        ("0x1x1x1", "emb_dim must be at least 1"),
    ],
)
def test_a_shape_that_is_no_gpt2_is_refused(shape, rule):
    with pytest.raises(BadValue) as caught:
        architecture("gpt2", shape)
    assert (caught.value.field, caught.value.rule, caught.value.value) == ("shape", rule, shape)


def test_the_weights_of_a_model_have_its_own_shape():
    """Another one needs other weights, or none."""
    assert "'weights' names others" in refused("shape", "512x8x4x512").rule
    assert RunConfig(shape="384x6x4x256").architecture == MODELS["mini"].config
    assert RunConfig(init="random", shape="64x2x1x64").architecture.emb_dim == 64


def test_the_bundled_model_needs_no_hub():
    assert MODELS[RunConfig().model].hub == "" and RunConfig().data.data in DATA_SOURCES


def test_scale_of_the_update():
    """alpha / r as in Hu et al. 2021, alpha / sqrt(r) where it is rank-stabilised."""
    assert LoRAConfig(rank=8, alpha=16).scale == 2
    assert LoRAConfig(rank=16, alpha=16, rank_stabilised=True).scale == 4


@pytest.mark.parametrize("method", METHODS)
def test_the_learning_rate_follows_the_method_where_it_is_0(method):
    assert TrainingConfig(method=method).effective_learning_rate == LEARNING_RATES[method]
    assert TrainingConfig(method=method, learning_rate=0.5).effective_learning_rate == 0.5


# --- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_labelled(name):
    values = preset(name).flat()
    assert {key: values[key] for key in PRESETS[name]} == PRESETS[name]
    assert PRESETS.keys() == PRESET_LABELS.keys() and PRESET_LABELS[name]


def test_the_default_preset_is_the_default_run():
    assert preset("default") == RunConfig()


@pytest.mark.parametrize(("name", "epochs", "seed"), [("lab", 1, 42), ("lab-2", 2, 123)])
def test_the_lab_presets_are_the_labs_protocol(name, epochs, seed):
    """Balanced, plain shuffle, 80/20 without a validation part, rank 8, alpha 16, batch 8."""
    config = preset(name)
    assert (config.training.epochs, config.seed, config.training.batch_size) == (epochs, seed, 8)
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (8, 16, tuple(TARGETS))
    assert (config.data.validation_fraction, config.data.test_fraction) == (0, 0.2)
    assert config.data.balance and not config.data.keep_apart and not config.data.stratify


def test_an_unknown_preset_is_refused():
    with pytest.raises(BadValue, match=r"preset: must be one of default, lab, lab-2, .*; got 'x'"):
        preset("x")


def test_the_preset_of_pretraining_means_two_runs():
    """They differ in the starting weights alone; any other preset, and the same run, is one."""
    config = preset("pretraining").changed(epochs=1)
    first, second = compared("pretraining", config)
    assert first == config and second == config.changed(init="random") == twin_of(config)
    assert twin_of(second) == config
    # No pretrained weights have this shape.
    assert twin_of(RunConfig(init="random", shape="64x2x1x64")) is None
    assert compared("default", config) == [config]
    assert compared("pretraining", second) == [second]
    assert BESIDE.keys() <= PRESETS.keys()
