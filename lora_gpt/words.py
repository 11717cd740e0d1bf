"""Numbers and names as people say them, on the page and in the report.

One rule each: whatever tells a share, a size, a time or a knob to people asks here.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_gpt.config import LEARNING_RATES, TARGETS, RunConfig, all_knobs

BESIDE_KNOBS = {"text": "Message", "strength": "Strength of the adapter", "run": "Run"}
"""What else a refusal may name, and what the page calls it."""
MEBIBYTE = 1024 * 1024
"""Bytes in which `core.cost` counts memory."""


def percent(share: float, digits: int = 1) -> str:
    """What was measured, 0.973 -> '97.3%'. A share that is not whole is never rounded to 0% or
    100%."""
    said = f"{100 * share:.{digits}f}"
    least = 10.0**-digits
    if 0 < share < 1 and float(said) in (0.0, 100.0):
        return f"under {least:g}%" if share < 0.5 else f"over {100 - least:g}%"
    return f"{said}%"


def fraction(share: float) -> str:
    """What was counted, such as the parameters that are trained: two decimals, or two digits where
    the share is tiny: '1.06%', '0.0012%', '100%'."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share >= 0.001:
        return f"{share:.2%}"
    told = float(f"{100 * share:.2g}")
    return f"{told:.{max(2, 1 - math.floor(math.log10(told)))}f}%"


def percent_with_interval(measured: Mapping[str, Any]) -> str:
    """An accuracy, '97.3% (95% interval 94.8 to 98.6, 291 of 299)', of a dict of `Metrics`."""
    low, high = measured["interval"]
    right = measured["tn"] + measured["tp"]
    return (
        f"{percent(measured['accuracy'])} (95% interval {100 * low:.1f} to {100 * high:.1f},"
        f" {right:,} of {measured['size']:,})"
    )


def size(held: float, digits: int = 3) -> str:
    """Bytes, the units powers of a thousand: '6.2 KB', '5.31 MB', '1.96 GB'."""
    rounded = float(f"{held:.{digits}g}")
    units = (("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1))
    unit, one = next(each for each in units if rounded >= each[1] or each[1] == 1)
    return f"{rounded / one:,g} {unit}"


def label_of(field: str) -> str:
    """What the page calls a field that is refused; its name where the page has no such control."""
    known = {name: about.label for name, about in all_knobs().items()}
    return (BESIDE_KNOBS | known).get(field, field)


def labelled(refusal: str) -> str:
    """A refusal with every field and layer as the page calls it: 'spam_label: must be' -> 'Word for
    spam: must be', 'or label_column' -> 'or “Label column”'. What stands in quotes is somebody's
    own and stays."""

    def named(found: re.Match[str]) -> str:
        field, word = found["field"], found["word"]
        if field:
            return label_of(field)
        if word in TARGETS:
            return TARGETS[word]
        # A name of one word is also a word of the language.
        label = label_of(word) if word and "_" in word else word
        return found[0] if label == word else f"“{label}”"

    quoted = r"""(?<!\w)'[^']*'|"[^"]*\""""
    return re.sub(rf"^(?P<field>\w+)(?=: )|{quoted}|(?P<word>\w+)", named, refusal)


LABELLED = (
    *("balance", "keep_apart", "stratify", "validation_fraction", "test_fraction"),
    *("batch_size", "schedule", "warmup_fraction", "weight_decay", "clip", "max_tokens"),
)
"""Knobs that a run's label names where they are not the default, beside those with words of their
own: what changes the messages or the course of a training."""


def run_label(config: RunConfig) -> str:
    """A run in a few words: 'mini, LoRA r 8, bundled, seed 42', and what else is not the default:
    'alpha 32, 1 epoch'."""
    method = {"lora": f"LoRA r {config.lora.rank}", "head": "head only", "full": "full"}
    start = "" if config.init == "pretrained" else ", random start"
    data = Path(config.data.data).name
    model = f"{config.model} {config.shape}".rstrip()
    words = [f"{model}, {method[config.training.method]}{start}, {data}, seed {config.seed}"]
    lora, training, usual = config.lora, config.training, RunConfig()
    if training.method == "lora":
        if lora.alpha != usual.lora.alpha:
            words.append(f"alpha {lora.alpha:g}")
        if lora.rank_stabilised:
            words.append("rank-stabilised")
        if lora.dropout:
            words.append(f"dropout {lora.dropout:g}")
        if set(lora.targets) != set(usual.lora.targets):
            words.append(f"on {' + '.join(TARGETS[name] for name in lora.targets)}")
    if training.effective_learning_rate != LEARNING_RATES[training.method]:
        words.append(f"rate {training.effective_learning_rate:g}")
    if training.epochs != usual.training.epochs:
        words.append("1 epoch" if training.epochs == 1 else f"{training.epochs} epochs")
    if training.max_steps:
        words.append(f"at most {training.max_steps:,} steps")
    given, default = config.flat(), usual.flat()
    for name in LABELLED:
        if given[name] != default[name]:
            value = given[name]
            shown = ("off", "on")[value] if isinstance(value, bool) else value
            words.append(f"{all_knobs()[name].label.lower()} {shown}")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Seconds as '0.4 s', '41 s', '3 min 5 s' or '2 h 10 min'."""
    if seconds < 0.05:
        return "0 s"
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, rest = divmod(whole, 3600)
    minutes = rest // 60
    return f"{hours:,} h {minutes} min" if minutes and hours < 48 else f"{hours:,} h"


def about_duration(seconds: float) -> str:
    """An estimate, no finer than it can be: '40 s', '4 min', '2 h'."""
    if seconds < 60:
        return duration(float(f"{seconds:.2g}"))
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.2g} h" if seconds < 36000 else f"{seconds / 3600:,.0f} h"
