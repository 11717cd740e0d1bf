"""`adapter_config.json`, both ways: PEFT's fields, and ours beside them under `lora_gpt`.

Knows no tensors and no torch: it turns a file into a checked `Plan` of what has to be injected
where. Whatever PEFT can express and we cannot (DoRA, ranks that differ by layer, regular
expressions) is refused by name, never ignored.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_gpt.config import METHODS, TARGETS, BadValue, LoRAConfig
from lora_gpt.core.lora import PATHS

SIZE_LIMIT = 256 * 1024
"""Most bytes of an adapter_config.json."""
HEAD = "out_head"
SAMPLE_SIZE = 32
"""Values of the base that an adapter of ours brings along, to know it again."""
LARGEST = 1e38
"""A size that single precision still holds."""
NO_TARGETS = "dummy-target-modules"
"""What PEFT reads as 'no LoRA at all, only modules_to_save'."""

HARMLESS = (
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
)
"""Fields of PEFT that change nothing in what is computed."""
OWN = ("model", "shape", "init", "weights", "seed", "method", "whole_model", "lora", "base_sample")


class AdapterError(BadValue):
    """An adapter does not fit or is not what it says: `field` names the file, key or tensor."""


@dataclass(frozen=True)
class Plan:
    """What an adapter asks for, checked."""

    method: str
    lora: LoRAConfig
    paths: tuple[str, ...] = ()
    """The linear layers that get a LoRA, by their path in the model."""
    base: str = "a base that it does not name"
    base_sample: tuple[float, ...] | None = None


def peft_fields(lora: LoRAConfig, method: str, base: str) -> dict[str, Any]:
    """PEFT's own fields; a whole model ('full') is no adapter, and says so by having no type."""
    fields: dict[str, Any] = {"base_model_name_or_path": base or None, "task_type": None}
    if method == "full":
        return fields | {"peft_type": None}
    # The last two parts of a path, 'layers.0', or the last, 'W_query': PEFT matches by suffix.
    suffixes = [re.sub(r"^(att|ff)\.", "", PATHS[target]) for target in lora.targets]
    return fields | {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": NO_TARGETS if method == "head" else suffixes,
        "modules_to_save": [HEAD],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def read(content: bytes, linear_paths: Sequence[str]) -> Plan:
    """The plan in an adapter_config.json, for a model whose linear layers are `linear_paths`."""
    fields = _parse(content)
    own = fields.pop("lora_gpt", None) or {}
    _check_own(own)
    about: dict[str, Any] = {"base": f"{own['model']} ({own['init']})"} if own else {}
    if "base_sample" in own:
        about["base_sample"] = tuple(map(float, own["base_sample"]))
    if own.get("method") == "full":
        return Plan("full", LoRAConfig(), **about)
    _check_peft(fields)
    if fields["target_modules"] == NO_TARGETS:
        return Plan("head", LoRAConfig(), **about)
    targets, paths = _matched(fields["target_modules"], linear_paths)
    try:
        lora = LoRAConfig(
            rank=fields["r"],
            alpha=fields["lora_alpha"],
            targets=targets,
            dropout=fields.get("lora_dropout", 0.0),
            rank_stabilised=fields.get("use_rslora", False),
        )
    except BadValue as error:
        raise AdapterError(
            f"adapter_config.json: {error.field}", error.rule, error.value
        ) from error
    return Plan("lora", lora, paths, **about)


def _parse(content: bytes) -> dict[str, Any]:
    if len(content) > SIZE_LIMIT:
        rule = f"must be at most {SIZE_LIMIT:,} bytes"
        raise AdapterError("adapter_config.json", rule, f"{len(content):,} bytes")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError("adapter_config.json", "must be JSON", content[:40]) from error
    if not isinstance(fields, dict):
        raise AdapterError("adapter_config.json", "must be a JSON object", content[:40])
    return fields


def _check_own(own: Any) -> None:
    if not isinstance(own, dict):
        raise AdapterError("lora_gpt", "must be a JSON object", own)
    if not own:
        return
    for name in own:
        if name not in OWN:
            raise AdapterError("lora_gpt", f"knows only {', '.join(OWN)}", name)
    for name in ("model", "init", "method"):
        if not isinstance(own.get(name), str):
            raise AdapterError(f"lora_gpt.{name}", "must be text", own.get(name))
    if own["method"] not in METHODS:
        raise AdapterError("lora_gpt.method", f"must be one of {', '.join(METHODS)}", own["method"])
    if "base_sample" in own:
        _check_sample(own["base_sample"])


def _check_sample(sample: Any) -> None:
    rule = f"must be a list of {SAMPLE_SIZE} finite numbers"
    if not isinstance(sample, list):
        raise AdapterError("lora_gpt.base_sample", rule, sample)
    if len(sample) != SAMPLE_SIZE:
        raise AdapterError("lora_gpt.base_sample", rule, f"{len(sample):,} values")
    for value in sample:
        # Neither infinity nor NaN is within, and a whole number may be longer than any float.
        if not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise AdapterError("lora_gpt.base_sample", rule, str(value)[:40])


RULES: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), "must be LORA"),
    "task_type": ((None, "SEQ_CLS"), "must be null or SEQ_CLS"),
    "bias": (("none",), "must be none"),
    "modules_to_save": (([HEAD],), f"must be [{HEAD}]: the adapter needs its two-class head"),
    "init_lora_weights": (
        (True, False, None, "gaussian", "orthogonal", "eva"),
        "must be a start that leaves the base as it is",
    ),
}
"""What a field may hold, and the rule in words."""
READ_ELSEWHERE = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules")


def _check_peft(fields: dict[str, Any]) -> None:
    """Every field is one that we follow, one without effect, or switched off."""
    for name in ("peft_type", "r", "lora_alpha", "target_modules", "modules_to_save"):
        if name not in fields:
            raise AdapterError("adapter_config.json", f"must have the field {name}", list(fields))
    for name, value in fields.items():
        key = f"adapter_config.json: {name}"
        if name in RULES:
            allowed, rule = RULES[name]
            if value not in allowed:
                raise AdapterError(key, rule, value)
        elif name not in (*HARMLESS, *READ_ELSEWHERE) and value not in (None, False, {}, []):
            raise AdapterError(key, "must be off: it is not supported here", value)


def _matched(wanted: Any, linear_paths: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(targets, paths of their layers), as PEFT matches: a whole path, or its end after a dot."""
    key = "adapter_config.json: target_modules"
    if not isinstance(wanted, list) or not all(isinstance(each, str) for each in wanted):
        raise AdapterError(key, "must be a list of layer names", wanted)
    matched = set()
    for end in wanted:
        found = {path for path in linear_paths if f".{path}".endswith(f".{end}")}
        if not found or HEAD in found:
            rule = f"must name linear layers of the blocks, such as {', '.join(PATHS.values())}"
            raise AdapterError(key, rule, end)
        matched |= found
    layers = {t: {p for p in linear_paths if p.endswith(f".{PATHS[t]}")} for t in TARGETS}
    targets = tuple(target for target in TARGETS if layers[target] & matched)
    for target in targets:
        if missing := layers[target] - matched:
            rule = f"must name {PATHS[target]} in every block or in none"
            raise AdapterError(key, rule, f"none for {min(missing)}")
    return targets, tuple(path for path in linear_paths if path in matched)
