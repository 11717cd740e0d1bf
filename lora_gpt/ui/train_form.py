"""The controls of a training: which knobs are shown where, and what they say together.

Labels, help and ranges come from the knobs themselves. Knows nothing of running a training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_gpt.config import DATA_SOURCES, PRESETS, RunConfig, all_knobs, preset
from lora_gpt.ui.controls import config_from, control

UPLOAD = "upload"
"""Stands for a visitor's own file in the list of data sets."""
UPLOAD_TYPES = [".csv", ".tsv", ".txt"]

WHAT = ("model", "init")
COLUMNS = ("text_column", "label_column", "spam_label")
LORA = ("rank", "alpha", "targets")
TRAINING = ("epochs", "batch_size", "learning_rate", "schedule")
MORE_OF_LORA = ("rank_stabilised", "dropout")
MORE = (
    "seed",
    *MORE_OF_LORA,
    "balance",
    "keep_apart",
    "stratify",
    "validation_fraction",
    "test_fraction",
    "max_steps",
    "max_tokens",
    "warmup_fraction",
    "weight_decay",
    "clip",
    "validate_every",
    "checkpoint_every",
    "device",
    "precision",
)
"""Rarely touched. `weights` is missing: a path of the server is nothing for a visitor to name."""


@dataclass(frozen=True)
class Form:
    """The widgets by the names of their knobs; `data` is the list of data sets."""

    knobs: dict[str, Any]
    upload: gr.File
    columns: gr.Column
    """Shown where one's own file is chosen."""
    scale: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """What a handler needs to be given for `read`."""
        return [*self.knobs.values(), self.upload]

    @property
    def of_lora(self) -> list[Any]:
        """What has an effect where LoRA is injected alone."""
        return [*(self.knobs[name] for name in (*LORA, *MORE_OF_LORA)), self.scale]

    def of_method(self, method: str) -> list[Any]:
        """Show `of_lora` for the method that looks at it, and for no other."""
        return [gr.update(visible=method == "lora") for _ in self.of_lora]

    def read(self, values: Sequence[Any]) -> tuple[RunConfig, Path | None]:
        """The values of `inputs` -> the run, and the uploaded file if one is meant.

        Raises BadValue, and ValueError where a file is meant and none is there.
        """
        *given, uploaded = values
        known = dict(zip(self.knobs, given, strict=True))
        source = known.pop("data")
        config = config_from(list(known), list(known.values()), RunConfig())
        if source == UPLOAD:
            if not uploaded:
                raise ValueError("Choose a CSV, TSV or TXT file of your own messages first.")
            return config, Path(uploaded)
        if source not in DATA_SOURCES:
            raise ValueError("Messages: choose one of the data sets in the list.")
        return config.changed(data=source), None

    def preset_values(self, name: str) -> list[Any]:
        """The values of the knobs, in their order, for a preset; the data set stays as it is."""
        flat = preset(name).flat()
        kept = (*COLUMNS, "data", "model")
        changes = PRESETS[name]
        return [
            gr.skip() if knob in kept and knob not in changes else _shown(flat[knob])
            for knob in self.knobs
        ]


def whole(config: RunConfig, upload: Path | None) -> RunConfig:
    """The config with the uploaded file as its data, to look at before there is a run."""
    return config.changed(data=str(upload)) if upload else config


def build_form() -> Form:
    """Make the widgets, in a column of their own."""
    knobs: dict[str, Any] = {name: control(name) for name in WHAT}
    about = all_knobs()["data"]
    sets = [(label, name) for name, label in DATA_SOURCES.items()] + [("Your own file", UPLOAD)]
    knobs["data"] = gr.Dropdown(
        sets, value="bundled", label=about.label, filterable=False, info=_SOURCE_HELP
    )
    with gr.Column(visible=False) as columns:
        upload = gr.File(label="Your file", file_types=list(UPLOAD_TYPES), height=120)
        knobs |= {name: control(name) for name in COLUMNS}
    knobs["method"] = control("method")
    knobs |= {name: control(name) for name in LORA}
    scale = gr.HTML()
    knobs |= {name: control(name) for name in TRAINING}
    with gr.Accordion("More knobs", open=False):
        knobs |= {name: control(name) for name in MORE}
    return Form(knobs, upload, columns, scale)


_SOURCE_HELP = (
    "What is learnt from. The bundled ones were written for this app by a language model; a file of"
    " your own needs a column of texts and one of labels."
)


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
