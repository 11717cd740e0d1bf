"""Base weights: random, bundled, from a folder or from the Hugging Face Hub; safetensors only.

A file, or several under an index, hold either our own names or those of a GPT-2 checkpoint, which
are translated. Every name and shape is checked before a number is read, and the model is built
without weights and given them, so nothing is initialised twice. Knows nothing of LoRA and of heads
for classification.
"""

import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from lora_gpt.config import MODELS, BadValue, GPTConfig, RunConfig, architecture
from lora_gpt.core.hub import INSTEAD, Hub
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.tensor_file import INDEX, WeightsError, check, opened, parts_of, tensor
from lora_gpt.core.tokenizer import ASSETS
from lora_gpt.events import Progress

__all__ = [
    "BUNDLED",
    "WeightsError",
    "empty_model",
    "load_base",
    "read_base",
    "save_base",
]

BUNDLED = ASSETS / "mini"
"""The folder of the bundled model."""
FILE = "model.safetensors"
FILES = FILE + INDEX
LARGEST_FILE = 10_000_000
"""Bytes. Git hosts take no larger files without an extension that would have to be installed."""
LARGEST_DESCRIPTION = 1_000_000  # bytes of a config.json; real ones have a thousand
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5")
IGNORED = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|score\.weight")
"""What GPT-2 checkpoints may hold beside the base: causal masks, a head for classification."""
NO_GPT2 = "Only GPT-2's architecture is read here."
HUB_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+", re.ASCII)


def load_base(
    config: RunConfig, *, bundled: Path = BUNDLED, hub: Hub | None = None
) -> Generator[Progress, None, GPTModel]:
    """The base that `config` names, float32, on the CPU, in eval mode.

    Yields Progress; a download in bytes. Raises WeightsError, one sentence, for weights that are
    missing, out of reach or of another model.
    """
    cfg, own = config.architecture, MODELS[config.model].hub
    if config.init == "random":
        yield Progress(f"making random weights for {config.label}", 0, 1)
        model = empty_model(cfg).to_empty(device="cpu")
        return initialise(model, config.seed).eval()
    path = _local(config) if config.weights else None if own else _in_folder(bundled)
    if path is None:
        path = yield from _downloaded(config.weights or own, config, hub or Hub())
    yield Progress(f"reading the weights of {config.label}", 0, 1)
    try:
        return read_base(path, cfg)
    except WeightsError as error:
        source = config.weights or own
        if source and source not in str(error):  # a tensor alone does not say whose it is
            raise WeightsError(f"{source}: {error}") from error
        raise


def check_at_hand(config: RunConfig, hub: Hub | None = None) -> None:
    """Refuse weights that are neither on this machine nor to be had from the Hub now, and those
    whose description tells of another model.

    A file of the Hub is left for `load_base` to download, with its progress. Raises WeightsError.
    """
    source, hub = config.weights or MODELS[config.model].hub, hub or Hub()
    if config.init == "random" or not source or (config.weights and _local(config)):
        return
    if _cached(source, hub):
        return
    try:
        hub.ask(source, FILE)
    except FileNotFoundError:
        try:
            hub.ask(source, FILES)
        except FileNotFoundError as error:
            raise _without(source, FILE) from error


def read_base(path: Path, cfg: GPTConfig) -> GPTModel:
    """The model in a safetensors file or an index of several, under our names or GPT-2's.

    Nothing is copied where the file holds float32: the weights stay mapped. A file without output
    head has a tied one, which then shows the token embedding. Rows of tokens that a fine-tuner
    added, and a head for classification, are left out. Raises WeightsError naming the first tensor
    that is missing, surplus or of the wrong shape.
    """
    model = empty_model(cfg)
    with opened(path) as file:
        names = set(file.keys())
        try:
            pieces = _fitting_pieces(file, names, model, path.name)
        except WeightsError as error:
            raise WeightsError(f"{error}{_hint(file, names, cfg)}") from error
        needed = {piece.name for piece in pieces.values()} & names
        values = {name: tensor(file, name) for name in needed}  # c_attn serves three of ours
    state = {o: p.of(values[p.name]) for o, p in pieces.items() if p.name in needed}
    if "out_head.weight" not in state:
        # The same numbers under a parameter of its own: whoever trains one head replaces it.
        state["out_head.weight"] = state["tok_emb.weight"]
    model.load_state_dict(state, assign=True)
    return model.eval()


def _fitting_pieces(
    file: Any, names: set[str], model: GPTModel, called: str
) -> dict[str, "_Piece"]:
    """Where the parameters of `model` stand in a file; refuses one that holds others."""
    pieces = _own_pieces(model) if "tok_emb.weight" in names else _gpt2_pieces(model, names)
    head = pieces["out_head.weight"].name
    for piece in pieces.values():
        if piece.name in names:
            check(file, piece.name, piece.shape, MOST_ADDED if piece.may_be_longer else 0)
        elif piece.name != head:
            raise WeightsError(f"{piece.name}: must have shape {piece.shape}; got no tensor.")
    for name in sorted(names - {piece.name for piece in pieces.values()}):
        if not IGNORED.fullmatch(name):
            found = tuple(file.get_slice(name).get_shape())
            raise WeightsError(f"{name}: must not be in {called}; got shape {found}.")
    return pieces


def save_base(
    model: GPTModel,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    largest: int = LARGEST_FILE,
) -> Path:
    """Write `model` under our names, without its output head, which must be tied (ValueError).

    More than `largest` bytes go into several files with an index; what is to be read is returned.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not torch.equal(parameters.pop("out_head.weight"), model.tok_emb.weight):
        raise ValueError(f"out_head: must equal tok_emb to be saved in {folder}; got another head")
    contents = {name: p.detach().to("cpu", dtype).contiguous() for name, p in parameters.items()}
    # A header takes about a hundred bytes a tensor.
    room = max(1, largest - 200 * len(contents))
    split = split_torch_state_dict_into_shards(contents, max_shard_size=room)
    written = {
        name: save({each: contents[each] for each in names}, metadata={"format": "pt"})
        for name, names in split.filename_to_tensors.items()
    }
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        written[FILES] = json.dumps(index, indent=1).encode()
    for name, content in written.items():
        # Put in place whole, so that nobody who has the old file mapped sees it change.
        part = folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    for old in folder.glob("model*.safetensors*"):
        if old.name not in written:
            old.unlink()
    return _in_folder(folder)


def empty_model(cfg: GPTConfig) -> GPTModel:
    """A model without numbers, on the meta device."""
    with torch.device("meta"):
        return GPTModel(cfg)


# --- where the file is ---------------------------------------------------------------------------


def _local(config: RunConfig) -> Path | None:
    """The file or the index on this machine that `config.weights` names; None for a repository of
    the Hub. Raises WeightsError for what is neither, and where a config.json that lies beside tells
    of another model than that of `config`."""
    source = config.weights
    try:
        place = Path(source).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise WeightsError(
            f"Weights from: must name a folder that is there; got {source!r}."
        ) from error
    if place.suffix in PICKLES and place.is_file():
        raise WeightsError(f"Weights from: must be safetensors, never a pickle; got {source!r}.")
    if place.is_file():
        beside = place.with_name("config.json")
        _check_description(beside, str(beside), config)
        return place
    if place.is_dir():
        if not _in_folder(place).is_file():
            others = ", ".join(sorted(p.name for p in place.iterdir() if p.suffix in PICKLES))
            got = f"only {others}, which can run code when opened" if others else "none"
            raise WeightsError(f"Weights from: {source} must hold a {FILE}; got {got}.")
        _check_description(place / "config.json", f"{source}/config.json", config)
        return _in_folder(place)
    if not HUB_NAME.fullmatch(source):
        rule = "must be a folder, a .safetensors file or a Hugging Face repository owner/name"
        raise WeightsError(f"Weights from: {rule}; got {source!r}.")
    return None


def _in_folder(folder: Path) -> Path:
    """The weights file of a folder, or the index of its files; the former where neither is."""
    alone, index = folder / FILE, folder / FILES
    return index if index.is_file() and not alone.is_file() else alone


def _downloaded(source: str, config: RunConfig, hub: Hub) -> Generator[Progress, None, Path]:
    weights, description = _cached(source, hub), hub.cached(source, "config.json")
    if not weights:
        # The small file first: it tells a wrong model before half a gigabyte has been fetched.
        try:
            description = yield from hub.fetch(source, "config.json", f"looking up {source}")
        except FileNotFoundError:
            description = None
    if description:
        _check_description(description, f"{source}/config.json", config)
    if weights:
        return weights
    stage = f"downloading the weights of {config.label}"
    try:
        return (yield from hub.fetch(source, FILE, stage))
    except FileNotFoundError:
        return (yield from _fetched_in_parts(source, hub, stage))


def _cached(source: str, hub: Hub) -> Path | None:
    """The weights where they lie whole on this machine, if they do."""
    if alone := hub.cached(source, FILE):
        return alone
    index = hub.cached(source, FILES)
    whole = index and all(hub.cached(source, name) for name in parts_of(index))
    return index if whole else None


def _fetched_in_parts(source: str, hub: Hub, stage: str) -> Generator[Progress, None, Path]:
    """The index of a model in several files, all of them fetched."""
    missing = FILE
    try:
        index = yield from hub.fetch(source, FILES, stage)
        names = parts_of(index)
        for place, missing in enumerate(names, 1):
            yield from hub.fetch(source, missing, f"{stage}, file {place} of {len(names)}")
    except FileNotFoundError as error:
        raise _without(source, missing) from error
    return index


def _without(source: str, missing: str) -> WeightsError:
    return WeightsError(
        f"Weights from: {source} must hold a {missing}; got a repository without. Other formats"
        f" can run code when they are opened. Choose another, {INSTEAD}."
    )


MOST_ADDED = 512
"""Rows that a fine-tuner may have added to the embedding; more is a vocabulary of its own."""


def _cut(value: Any) -> str:
    """`value` as it stands in a file, short enough for a sentence."""
    told = repr(value)
    return told if len(told) <= 60 else told[:60] + "…"


def _check_description(path: Path, called: str, config: RunConfig) -> None:
    """Refuse a config.json that tells of another model; the number of heads stands nowhere else.
    `called` is what people know it by."""
    if not path.is_file():
        return
    if path.stat().st_size > LARGEST_DESCRIPTION:
        raise WeightsError(
            f"{called}: must have at most {LARGEST_DESCRIPTION:,} bytes; got"
            f" {path.stat().st_size:,}."
        )
    try:
        told: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{called}: must be JSON; got something else.") from error
    cfg, label = config.architecture, config.label
    sizes = _sizes(cfg)
    expected = {
        "model_type": ("gpt2",),
        **{name: (size,) for name, size in sizes.items()},
        "n_inner": (None, 4 * cfg.emb_dim),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    }
    for name, allowed in expected.items():
        if not isinstance(told, dict) or told.get(name, allowed[0]) not in allowed:
            got = told.get(name) if isinstance(told, dict) else told
            raise WeightsError(
                f"{called}: {name} must be {' or '.join(map(str, allowed))} for {label}; got"
                f" {_cut(got)}. {_fitting(sizes | told, cfg) if name in sizes else NO_GPT2}"
            )
    rows = told.get("vocab_size", cfg.vocab_size)
    most = cfg.vocab_size + MOST_ADDED
    if not isinstance(rows, int) or not cfg.vocab_size <= rows <= most:
        raise WeightsError(
            f"{called}: vocab_size must be from {cfg.vocab_size} to {most} for {label}; got"
            f" {_cut(rows)}. A vocabulary of its own needs a tokenizer of its own, which is not"
            " read here."
        )


def _sizes(cfg: GPTConfig) -> dict[str, int]:
    """The shape under the names of a config.json, the vocabulary left out."""
    return {
        "n_embd": cfg.emb_dim,
        "n_layer": cfg.n_layers,
        "n_head": cfg.n_heads,
        "n_positions": cfg.context_length,
    }


def _hint(file: Any, names: set[str], cfg: GPTConfig) -> str:
    """Which model or which shape the tensors of a GPT-2 of another size belong to, if they do; how
    many heads it has shows in no tensor."""
    prefix = "transformer." if "transformer.wte.weight" in names else ""
    blocks = re.compile(rf"{re.escape(prefix)}h\.\d+\.attn\.c_attn\.weight")
    try:
        _, n_embd = file.get_slice(f"{prefix}wte.weight").get_shape()
        n_positions, _ = file.get_slice(f"{prefix}wpe.weight").get_shape()
    except (SafetensorError, KeyError, ValueError):
        return ""
    told = {"n_embd": n_embd, "n_positions": n_positions}
    told["n_layer"] = sum(blocks.fullmatch(name) is not None for name in names)
    if not told["n_layer"] or _sizes(cfg).items() >= told.items():
        return ""
    for spec in MODELS.values():
        if spec.hub and _sizes(spec.config).items() >= told.items():
            return f" {_fitting(_sizes(spec.config), cfg)}"
    shape = f"{n_embd}xHEADSx{told['n_layer']}x{n_positions}"
    return f" {_set_shape(shape, cfg)}"


def _set_shape(shape: str, cfg: GPTConfig) -> str:
    """How to ask for weights of GPT-2's vocabulary in this shape, where `cfg` was asked for."""
    model = "" if cfg.vocab_size == MODELS["gpt2"].config.vocab_size else "--model gpt2 "
    return f"These weights have the shape {shape}: set it, on the command line with {model}--shape."


def _fitting(told: dict[str, Any], cfg: GPTConfig) -> str:
    """Which model or which shape a config.json with all sizes belongs to."""
    for name, spec in MODELS.items():
        if spec.hub and told.items() >= _sizes(spec.config).items():
            return f"These are weights of the size of {spec.label}: choose that model ({name})."
    shape = "x".join(str(told[name]) for name in ("n_embd", "n_head", "n_layer", "n_positions"))
    try:
        architecture("gpt2", shape)
    except BadValue:
        return NO_GPT2
    return _set_shape(shape, cfg)


# --- names and shapes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Where one of our parameters stands in a file: under `name`, in `shape`."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    third: int | None = None
    """GPT-2 keeps query, key and value side by side; 0, 1 or 2 is cut out of the last axis."""

    @property
    def may_be_longer(self) -> bool:
        """Whether it has a row for each token, to which a fine-tuner may have added some."""
        return self.name.endswith(("wte.weight", "lm_head.weight"))

    def of(self, values: Tensor) -> Tensor:
        """Our parameter, a view of `values`."""
        if self.third is not None:
            values = values.chunk(3, -1)[self.third]
        if self.may_be_longer:
            values = values[: self.shape[0]]
        return values.T if self.transposed else values


def _own_pieces(model: GPTModel) -> dict[str, _Piece]:
    return {name: _Piece(name, tuple(p.shape)) for name, p in model.named_parameters()}


GPT2_NAMES = {
    "tok_emb": "wte",
    "pos_emb": "wpe",
    "final_norm": "ln_f",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "att.out_proj": "attn.c_proj",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
    "att.W_query": "attn.c_attn",
    "att.W_key": "attn.c_attn",
    "att.W_value": "attn.c_attn",
}
"""Our modules -> those of OpenAI's checkpoints; `transformers` keeps the names."""
THIRDS = {"att.W_query": 0, "att.W_key": 1, "att.W_value": 2}


def _gpt2_pieces(model: GPTModel, names: set[str]) -> dict[str, _Piece]:
    prefix = "transformer." if "transformer.wte.weight" in names else ""
    pieces = {"out_head.weight": _Piece("lm_head.weight", tuple(model.out_head.weight.shape))}
    for ours, parameter in model.named_parameters():
        if ours == "out_head.weight":
            continue
        module, _, kind = ours.rpartition(".")
        block = re.match(r"trf_blocks\.(\d+)\.", module)
        inner = module[block.end() :] if block else module
        theirs = {"scale": "weight", "shift": "bias"}.get(kind, kind)
        name = f"{prefix}{f'h.{block[1]}.' if block else ''}{GPT2_NAMES[inner]}.{theirs}"
        # Their blocks multiply by (in, out), where nn.Linear keeps (out, in).
        transposed = block is not None and kind == "weight"
        shape = tuple(parameter.shape[::-1] if transposed else parameter.shape)
        third = THIRDS.get(inner)
        if third is not None:
            shape = (*shape[:-1], 3 * shape[-1])
        pieces[ours] = _Piece(name, shape, transposed, third)
    return pieces
