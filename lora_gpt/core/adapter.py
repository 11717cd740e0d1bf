"""Adapter files in PEFT's layout, both ways: what was trained, without the base it was trained on.

`adapter_model.safetensors` holds `base_model.model.<path>.lora_A.weight` (r, in), `.lora_B.weight`
(out, r) and the new head; `adapter_config.json` says how to put them in. Knows GPTModel and its
LoRA layers, nothing of runs or where base weights come from. Reading trusts nothing: every field,
name, shape and number is checked before the model is touched.

Source of the layout: PEFT, docs "PEFT checkpoint format".
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from lora_gpt.config import MODELS, BadValue, LoRAConfig, RunConfig
from lora_gpt.core import adapter_config, tensor_file
from lora_gpt.core.adapter_config import HEAD, SAMPLE_SIZE, AdapterError, Plan
from lora_gpt.core.lora import lora_layers, replace_head, replace_linear_with_lora
from lora_gpt.core.model import GPTModel
from lora_gpt.core.tensor_file import is_pickle
from lora_gpt.events import Write

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."

__all__ = ["AdapterError", "adapter_files", "apply_adapter"]


def adapter_files(model: GPTModel, config: RunConfig) -> dict[str, Write]:
    """What writes the two files, by name, of a model trained as `config` says.

    'lora' gives every A and B and the head, 'head' the head alone, 'full' every parameter under
    its own name, so that the file is the whole model.
    """
    method = config.training.method
    if method == "full":
        tensors: dict[str, Tensor] = dict(model.named_parameters())
    else:
        tensors = {f"{PREFIX}{HEAD}.{name}": p for name, p in model.out_head.named_parameters()}
    if method == "lora":
        for path, layer in lora_layers(model):
            tensors[f"{PREFIX}{path}.lora_A.weight"] = layer.lora.A.T
            tensors[f"{PREFIX}{path}.lora_B.weight"] = layer.lora.B.T
    rebuild = {
        "model": config.model,
        "shape": config.shape,
        "init": config.init,
        "weights": config.weights,
        "seed": config.seed,
        "method": method,
        "whole_model": method == "full",
        "lora": asdict(config.lora),
    }
    if method != "full":
        rebuild["base_sample"] = base_sample(model)
    base = (config.weights or MODELS[config.model].hub) if config.init == "pretrained" else ""
    fields = adapter_config.peft_fields(config.lora, method, base) | {"lora_gpt": rebuild}
    told = json.dumps(fields, indent=2, sort_keys=True)

    def write_config(path: Path) -> None:
        path.write_text(told, encoding="utf-8")

    return {
        WEIGHTS_FILE: lambda path: tensor_file.write(path, tensors, {"format": "pt"}),
        CONFIG_FILE: write_config,
    }


def apply_adapter(model: GPTModel, files: Mapping[str, bytes]) -> None:
    """Put an adapter into the plain base `model`, in place: LoRA injected, head replaced, values
    loaded bit for bit.

    Parameters of the base are never written to: where an adapter brings its own, they take the
    place of the old ones. Raises AdapterError for anything that does not fit; the model is then
    unchanged.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise AdapterError("adapter", f"must hold {CONFIG_FILE} and {WEIGHTS_FILE}", [*files])
    if any(True for _ in lora_layers(model)):
        raise AdapterError("model", "must not have an adapter yet", "a model with LoRA")
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    plan = adapter_config.read(files[CONFIG_FILE], paths)
    tensors = _read_tensors(files[WEIGHTS_FILE])
    _check(tensors, _expected_shapes(model, plan))
    _check_base(model, plan)
    state = {_own_name(name, plan): _own_layout(name, t) for name, t in tensors.items()}
    if plan.method == "lora":
        _inject(model, plan.lora)
    replace_head(model)
    device = model.tok_emb.weight.device
    model.load_state_dict(
        {name: tensor.to(device) for name, tensor in state.items()},
        assign=True,
        strict=plan.method == "full",
    )
    model.train(model.training)  # the new layers join the mode of the model


def base_sample(model: GPTModel) -> list[float]:
    """Evenly spaced values of the token embedding, which no adapter trains: a fingerprint."""
    values = model.tok_emb.weight.detach().flatten()
    places = torch.linspace(0, len(values) - 1, SAMPLE_SIZE, dtype=torch.float64).long()
    return values[places.to(values.device)].float().tolist()


def _read_tensors(content: bytes) -> dict[str, Tensor]:
    if is_pickle(content[:9]):
        rule = "must be a safetensors file, because a pickle can run code when it is opened"
        raise AdapterError(WEIGHTS_FILE, rule, f"a pickle of {len(content):,} bytes")
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        rule = "must be a whole safetensors file"
        raise AdapterError(WEIGHTS_FILE, rule, f"{len(content):,} bytes ({error})") from error


def _expected_shapes(model: GPTModel, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Every tensor that the file must hold, with its shape there."""
    emb_dim, classes = model.cfg.emb_dim, 2
    head = {f"{HEAD}.weight": (classes, emb_dim), f"{HEAD}.bias": (classes,)}
    if plan.method == "full":
        return {name: tuple(p.shape) for name, p in model.named_parameters()} | head
    expected: dict[str, tuple[int, ...]] = {PREFIX + name: shape for name, shape in head.items()}
    for path in plan.paths:
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        expected[f"{PREFIX}{path}.lora_A.weight"] = (plan.lora.rank, linear.in_features)
        expected[f"{PREFIX}{path}.lora_B.weight"] = (linear.out_features, plan.lora.rank)
    return expected


def _check(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in tensors:
            raise AdapterError(name, f"must be in {WEIGHTS_FILE}, of shape {shape}", "nothing")
    for name, tensor in sorted(tensors.items()):
        if name not in expected:
            rule = f"must not be in {WEIGHTS_FILE}: this adapter has no use for it"
            raise AdapterError(name, rule, tuple(tensor.shape))
        if tuple(tensor.shape) != expected[name]:
            rule = f"must have shape {expected[name]} to fit this base and rank"
            raise AdapterError(name, rule, tuple(tensor.shape))
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise AdapterError(name, "must be float32, bfloat16 or float16", str(tensor.dtype))
        if not torch.isfinite(tensor).all():
            strange = tensor[~torch.isfinite(tensor)][0].item()
            raise AdapterError(name, "must hold finite numbers only", strange)


def _check_base(model: GPTModel, plan: Plan) -> None:
    """Shapes alone would let an adapter onto random weights that was trained on pretrained ones."""
    if plan.base_sample is None:
        return
    told, found = torch.tensor(plan.base_sample), torch.tensor(base_sample(model))
    # Wide enough for a base that was kept in bfloat16, far below the 0.1 between two bases.
    if not torch.allclose(told, found, rtol=0.02, atol=1e-3):
        rule = f"must be the one that this adapter was trained on, {plan.base}"
        raise AdapterError("base", rule, "a model of this shape with other weights")


def _inject(model: GPTModel, lora: LoRAConfig) -> None:
    try:
        replace_linear_with_lora(
            model, lora.rank, lora.alpha, lora.targets, lora.dropout, lora.rank_stabilised
        )
    except BadValue as error:
        raise AdapterError(error.field, error.rule, error.value) from error


def _own_name(name: str, plan: Plan) -> str:
    """PEFT's name of a tensor -> the parameter's name in our model."""
    own = name.removeprefix(PREFIX)
    for theirs, ours in ((".lora_A.weight", ".lora.A"), (".lora_B.weight", ".lora.B")):
        if plan.method == "lora" and own.endswith(theirs):
            return own.removesuffix(theirs) + ours
    return own


def _own_layout(name: str, tensor: Tensor) -> Tensor:
    """PEFT keeps A and B as a Linear's weight lies, transposed to ours."""
    adapts = name.endswith((".lora_A.weight", ".lora_B.weight"))
    return (tensor.T if adapts else tensor).float().contiguous()
