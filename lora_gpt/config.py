"""Every knob of a run, declared once: name, help, unit, range, choices and default.

The command line, the page and the report are built from these declarations. Knows nothing of
torch, files or pages. A bad value is refused with `BadValue`, which names the field, the rule and
the value.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from lora_gpt.knobs import BadValue, Group, Knob, knob, knobs

SPAM_FROM = 0.5
"""Lowest probability that is called spam."""

# --- architectures -----------------------------------------------------------------------------


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2: sizes in numbers of tokens, features, heads and blocks."""

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float = 0.0
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            if getattr(self, name) < 1:
                raise BadValue(name, "must be at least 1", getattr(self, name))
        if self.emb_dim % self.n_heads:
            raise BadValue("n_heads", f"must divide emb_dim {self.emb_dim}", self.n_heads)


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be chosen by name: its shape, its words for people, where it comes from."""

    label: str
    config: GPTConfig
    hub: str = ""
    """Hugging Face repository of the pretrained weights; empty for the bundled model."""
    encoding: str = "gpt2"
    """Name of the tokenizer, see `core.tokenizer`."""


def _gpt2(emb_dim: int, n_heads: int, n_layers: int) -> GPTConfig:
    return GPTConfig(50257, 1024, emb_dim, n_heads, n_layers)


MODELS: dict[str, ModelSpec] = {
    "mini": ModelSpec("mini (bundled)", GPTConfig(4096, 256, 384, 6, 4), encoding="mini"),
    "distilgpt2": ModelSpec("DistilGPT-2 82M", _gpt2(768, 12, 6), "distilbert/distilgpt2"),
    "gpt2": ModelSpec("GPT-2 124M", _gpt2(768, 12, 12), "openai-community/gpt2"),
    "gpt2-medium": ModelSpec("GPT-2 medium", _gpt2(1024, 16, 24), "openai-community/gpt2-medium"),
    "gpt2-large": ModelSpec("GPT-2 large", _gpt2(1280, 20, 36), "openai-community/gpt2-large"),
    "gpt2-xl": ModelSpec("GPT-2 XL", _gpt2(1600, 25, 48), "openai-community/gpt2-xl"),
}
SHOWN_MODEL = "gpt2"
"""Whose tree and counts are shown where none is chosen: the one of the labs."""

LARGEST_SHAPE = {"features": 2048, "heads": 64, "blocks": 64, "tokens of context": 4096}
"""In the order in which a shape is written; a little more than XL has of each."""


def architecture(model: str, shape: str = "") -> GPTConfig:
    """The shape of `model`, or another one written as features x heads x blocks x context.

    '768x12x3x1024' is GPT-2 124M with three blocks. The vocabulary stays the model's, because its
    tokenizer does. Raises BadValue for no model and no shape.
    """
    if model not in MODELS:
        raise BadValue("model", f"must be one of {', '.join(MODELS)}", model)
    own = MODELS[model].config
    if not shape:
        return own
    sizes = [int(size) for size in shape.split("x") if re.fullmatch(r"\d{1,4}", size, re.ASCII)]
    limits = [*LARGEST_SHAPE.values()]
    if len(sizes) != 4 or shape.count("x") != 3 or any(map(int.__gt__, sizes, limits)):
        limit = ", ".join(f"at most {most} {what}" for what, most in LARGEST_SHAPE.items())
        rule = "must be features x heads x blocks x context, such as 768x12x3x1024"
        raise BadValue("shape", f"{rule}, with {limit}", shape)
    emb_dim, n_heads, n_layers, context_length = sizes
    try:
        return replace(
            own,
            emb_dim=emb_dim,
            n_heads=n_heads,
            n_layers=n_layers,
            context_length=context_length,
        )
    except BadValue as error:
        raise BadValue("shape", f"{error.field} {error.rule}", shape) from error


TARGETS: dict[str, str] = {
    "W_query": "query",
    "W_key": "key",
    "W_value": "value",
    "out_proj": "attention output",
    "ff_in": "feed-forward in",
    "ff_out": "feed-forward out",
}
"""The linear layers of a block that LoRA may wrap, with their names for people."""

DATA_SOURCES: dict[str, str] = {
    "bundled": "Bundled messages",
    "sms-spam": "SMS Spam Collection",
}
"""Data sets known by name; anything else is the path of a file."""

PRETRAINING: dict[str, str] = {
    "prose": "language, mostly of books",
    "messages": "a quarter of it messages",
}
"""The stages in which the bundled model is pretrained, in order, with what each one reads."""


# --- the groups --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoRAConfig(Group):
    """What is injected: W x + strength * scale * (x A) B beside each target layer."""

    rank: int = knob(
        8,
        "Rank r",
        "Width of the two small matrices A and B. Higher learns more and costs more.",
        minimum=1,
        maximum=256,
        step=1,
    )
    alpha: float = knob(
        16.0,
        "Alpha",
        "How loudly the update speaks: it is multiplied by alpha / r.",
        minimum=0.1,
        maximum=1024,
        step=1,
    )
    targets: tuple[str, ...] = knob(
        tuple(TARGETS), "Targets", "Which linear layers of every block get a LoRA.", choices=TARGETS
    )
    dropout: float = knob(
        0.0,
        "LoRA dropout",
        "Share of the inputs of A that are dropped at random in training.",
        minimum=0,
        maximum=0.9,
        step=0.05,
    )
    rank_stabilised: bool = knob(
        False,
        "Rank-stabilised scale",
        "Scale by alpha / sqrt(r), so that high ranks keep their voice.",
    )

    @property
    def scale(self) -> float:
        """What the update is multiplied by (Hu et al. 2021, 4.1; Kalajdzievski 2023)."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class DataConfig(Group):
    """Which messages, and how they are divided."""

    data: str = knob(
        "bundled", "Messages", "A data set by name (bundled, sms-spam) or the path of a CSV or TSV."
    )
    text_column: str = knob("", "Text column", "Name of the text column; empty finds it.")
    label_column: str = knob("", "Label column", "Name of the label column; empty finds it.")
    spam_label: str = knob("", "Word for spam", "The label that means spam; empty finds it.")
    balance: bool = knob(
        True, "Balance classes", "Drop ham at random until there is as much spam as ham."
    )
    keep_apart: bool = knob(
        True,
        "Keep duplicates apart",
        "Never put a message in training and an equal or nearly equal one in test.",
    )
    stratify: bool = knob(True, "Stratify", "Give every part the same share of spam.")
    validation_fraction: float = knob(
        0.1,
        "Validation part",
        "Share of the messages that watch the training and are never trained on.",
        minimum=0,
        maximum=0.5,
        step=0.05,
    )
    test_fraction: float = knob(
        0.2,
        "Test part",
        "Share of the messages that are only looked at once, at the end.",
        minimum=0.01,
        maximum=0.8,
        step=0.05,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.strip():
            raise BadValue("data", "must name a data set or a file", self.data)
        if self.validation_fraction + self.test_fraction > 0.9:
            raise BadValue(
                "validation_fraction",
                "must leave at least 10% of the messages for training, beside test_fraction"
                f" {self.test_fraction:g}",
                self.validation_fraction,
            )


METHODS = {
    "lora": "LoRA and head",
    "head": "head only",
    "full": "all parameters",
}
SCHEDULES = {
    "cosine": "warm up, then cosine to 0",
    "linear": "warm up, then straight to 0",
    "constant": "warm up, then constant",
}
DEVICES = {"auto": "fastest here", "cpu": "CPU", "cuda": "NVIDIA GPU", "mps": "Apple GPU"}
PRECISIONS = {
    "auto": "fastest here",
    "float32": "32 bits (float32)",
    "bfloat16": "16 bits (bfloat16)",
}
LEARNING_RATES = {"lora": 1e-3, "head": 1e-2, "full": 1e-4}
"""What learning_rate 0 stands for; LoRA takes about ten times the rate of full tuning."""


@dataclass(frozen=True)
class TrainingConfig(Group):
    """How it is trained."""

    method: str = knob(
        "lora", "Method", "Which parameters are trained; the rest stays frozen.", choices=METHODS
    )
    epochs: int = knob(
        3, "Epochs", "How often the training part is gone through.", minimum=1, maximum=100, step=1
    )
    max_steps: int = knob(
        0, "Most steps", "Stop after this many steps; 0 goes on to the end.", minimum=0, step=1
    )
    batch_size: int = knob(
        8, "Batch size", "Messages in one step.", unit="messages", minimum=1, maximum=256, step=1
    )
    learning_rate: float = knob(
        0.0,
        "Learning rate",
        "Size of a step; 0 chooses for the method (LoRA 0.001, head 0.01, all 0.0001).",
        minimum=0,
        maximum=1,
    )
    schedule: str = knob(
        "cosine", "Schedule", "How the learning rate moves over the run.", choices=SCHEDULES
    )
    warmup_fraction: float = knob(
        0.1,
        "Warm-up",
        "Share of the steps over which the learning rate rises from 0.",
        minimum=0,
        maximum=0.5,
        step=0.05,
    )
    weight_decay: float = knob(
        0.01, "Weight decay", "Pull of AdamW towards 0.", minimum=0, maximum=1, step=0.01
    )
    clip: float = knob(
        1.0,
        "Gradient clipping",
        "Longest gradient that is let through; 0 lets all through.",
        minimum=0,
        maximum=100,
        step=0.5,
    )
    max_tokens: int = knob(
        0,
        "Longest message",
        "Tokens kept of each message; 0 keeps all that the model can read.",
        unit="tokens",
        minimum=0,
        maximum=1024,
        step=1,
    )
    validate_every: int = knob(
        25,
        "Validate every",
        "Steps between two looks at the validation part; 0 only looks after an epoch.",
        unit="steps",
        minimum=0,
        step=1,
    )
    checkpoint_every: int = knob(
        25,
        "Save every",
        "Steps between two checkpoints, from which a stopped run goes on.",
        unit="steps",
        minimum=1,
        step=1,
    )
    device: str = knob("auto", "Device", "Where it is computed.", choices=DEVICES)
    precision: str = knob(
        "auto",
        "Precision",
        "Of the frozen layers' products. 16 bits are chosen for GPT-2 sizes where this machine"
        " is measured to be much faster with them.",
        choices=PRECISIONS,
    )

    @property
    def effective_learning_rate(self) -> float:
        """The rate that is used: the one given, or the method's own where it is 0."""
        return self.learning_rate or LEARNING_RATES[self.method]

    def steps_per_epoch(self, messages: int) -> int:
        """Steps in which `messages` are gone through once; a last, partial batch is dropped.

        Raises BadValue where they do not fill one batch.
        """
        if messages < self.batch_size:
            rule = f"must be at most {messages}, the number of training messages"
            raise BadValue("batch_size", rule, self.batch_size)
        return messages // self.batch_size

    def steps(self, messages: int) -> int:
        """Steps of the whole training on `messages`. Raises BadValue as above."""
        steps = self.steps_per_epoch(messages) * self.epochs
        return min(steps, self.max_steps) if self.max_steps else steps


INITS = {"pretrained": "pretrained", "random": "random (never saw a text)"}


@dataclass(frozen=True)
class RunConfig(Group):
    """One training run, whole: the same RunConfig gives the same losses on the same machine."""

    model: str = knob(
        "mini",
        "Model",
        "The base that is adapted. mini has GPT-2's architecture at a small size and comes with"
        " the app; to train another one, its weights are downloaded once.",
        choices={name: spec.label for name, spec in MODELS.items()},
    )
    init: str = knob(
        "pretrained",
        "Starting weights",
        "Random weights show what pretraining is worth.",
        choices=INITS,
    )
    weights: str = knob(
        "",
        "Weights from",
        "A folder, a .safetensors file or a Hugging Face repository with the model's weights; empty"
        " takes its own.",
    )
    shape: str = knob(
        "",
        "Shape",
        "Of weights that have another shape than the model: features x heads x blocks x context,"
        " such as 768x12x3x1024; empty takes the model's.",
    )
    seed: int = knob(
        42,
        "Seed",
        "Decides split, order and starting values: the same seed gives the same losses.",
        minimum=0,
        maximum=2**31 - 1,
        step=1,
    )
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        cfg = self.architecture
        own = self.init == "pretrained" and not self.weights
        if own and cfg != MODELS[self.model].config:
            rule = f"must be empty for the weights of {self.model}; 'weights' names others"
            raise BadValue("shape", rule, self.shape)
        if self.training.method == "lora" and self.lora.rank > cfg.emb_dim:
            raise BadValue(
                "rank",
                f"must be at most {cfg.emb_dim}, the width of {self.shape or self.model}",
                self.lora.rank,
            )
        if self.training.max_tokens > cfg.context_length:
            raise BadValue(
                "max_tokens",
                f"must be at most {cfg.context_length}, the context of {self.shape or self.model}",
                self.training.max_tokens,
            )

    @property
    def architecture(self) -> GPTConfig:
        return architecture(self.model, self.shape)

    @property
    def label(self) -> str:
        """The model in words for people: 'GPT-2 124M', or 'GPT-2 of shape 768x12x3x1024'."""
        return f"GPT-2 of shape {self.shape}" if self.shape else MODELS[self.model].label

    def flat(self) -> dict[str, Any]:
        """Every knob by its own name, the groups laid side by side."""
        values = {name: getattr(self, name) for name in knobs(RunConfig)}
        for group in GROUPS:
            values |= asdict(getattr(self, group))
        return values

    def changed(self, **values: Any) -> Self:
        """A copy with some knobs set, each named as in `flat()`; an unknown name is refused."""
        parts: dict[str, dict[str, Any]] = {group: {} for group in ("", *GROUPS)}
        for name, value in values.items():
            parts[group_of(name)][name] = value
        groups = {g: replace(getattr(self, g), **parts[g]) for g in GROUPS}
        return replace(self, **parts[""], **groups)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; refuses names that it does not know."""
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= value if name in GROUPS and isinstance(value, Mapping) else {name: value}
        return cls().changed(**flat)


GROUPS: dict[str, type[Group]] = {
    "lora": LoRAConfig,
    "data": DataConfig,
    "training": TrainingConfig,
}


def all_knobs() -> dict[str, Knob]:
    """Every knob of a run by its own name."""
    found = knobs(RunConfig)
    for group in GROUPS.values():
        found |= knobs(group)
    return found


def group_of(name: str) -> str:
    """The group that declares the knob `name`, '' for RunConfig itself."""
    # A group's own name ('data') can also be a knob's: the knob inside the group is meant.
    for group, declared in GROUPS.items():
        if name in knobs(declared):
            return group
    if name in knobs(RunConfig):
        return ""
    raise BadValue("config", f"knows only the knobs {', '.join(all_knobs())}", name)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "lab": {
        "balance": True,
        "keep_apart": False,
        "stratify": False,
        "validation_fraction": 0.0,
        "test_fraction": 0.2,
        "epochs": 1,
        "batch_size": 8,
        "rank": 8,
        "alpha": 16.0,
        "seed": 42,
    },
    "lab-2": {
        "balance": True,
        "keep_apart": False,
        "stratify": False,
        "validation_fraction": 0.0,
        "test_fraction": 0.2,
        "epochs": 2,
        "batch_size": 8,
        "rank": 8,
        "alpha": 16.0,
        "seed": 123,
    },
    "quick": {"epochs": 1, "max_steps": 60},
    "pretraining": {},
    "random": {"init": "random"},
}
"""Named starting points: what each changes in the default run."""

PRESET_LABELS = {
    "default": "Default: three epochs",
    "lab": "Lab protocol: one epoch, seed 42",
    "lab-2": "Lab protocol: two epochs, seed 123",
    "quick": "Quick look: 60 steps",
    "pretraining": "What pretraining is worth: two runs in one chart, pretrained and random start",
    "random": "Random start: the default on weights that never saw a text",
}

BESIDE: dict[str, dict[str, Any]] = {"pretraining": {"init": "random"}}
"""Presets that start a second run after the first, to compare: what it changes in the first."""


def preset(name: str) -> RunConfig:
    """The run that a preset stands for."""
    if name not in PRESETS:
        raise BadValue("preset", f"must be one of {', '.join(PRESETS)}", name)
    return RunConfig().changed(**PRESETS[name])


def compared(name: str, config: RunConfig) -> list[RunConfig]:
    """The runs that starting `config` from the preset `name` means: itself, and what it is
    compared with, unless that is the same."""
    second = config.changed(**BESIDE.get(name, {}))
    return [config] if second == config else [config, second]


def twin_of(config: RunConfig) -> RunConfig | None:
    """The run that differs from `config` in its starting weights alone; None where it has none,
    such as a shape that no pretrained weights have."""
    try:
        return config.changed(init="random" if config.init == "pretrained" else "pretrained")
    except BadValue:
        return None
