"""The steps by name, as `python -m lora_gpt pretrain STEP` runs them; each goes on where it was."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_gpt.config import DATA_SOURCES, MODELS, BadValue, DataConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.data import read_messages
from lora_gpt.core.machine import choose_device
from lora_gpt.core.pretrain import corpus, language_model, pack, vocabulary


def run(
    step: str,
    work: Path,
    texts: Path | None,
    tokens: float,
    stage: str = "prose",
    compiled: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Run one step in the folder `work`. Raises BadValue for what is missing."""
    work.mkdir(parents=True, exist_ok=True)
    if step == "filter":
        if texts is None:
            raise BadValue("texts", "must name the folder with the pretraining texts", texts)
        # Every message of both data sets is kept out, the training ones too: simpler to promise.
        kept_out = [m.text for data in DATA_SOURCES for m in read_messages(DataConfig(data=data))]
        return corpus.write_corpus(texts, kept_out, work)
    if step == "vocabulary":
        size = MODELS["mini"].config.vocab_size
        return {"tokens": vocabulary.write_vocabulary(work, tokenizer.VOCABULARY, size)}
    if step == "encode":
        language_model.encode_sources(work, work)
        return {}
    if step == "train":
        return _train(work, tokens, stage, compiled, device)
    return pack.pack(work)


def _train(work: Path, tokens: float, stage: str, compiled: bool, device: str) -> dict[str, Any]:
    if not isinstance(tokens, int | float) or not 1 <= tokens < 1e15:
        raise BadValue("tokens", "must be a number of at least 1 and below 1e15", tokens)
    if not (work / "tokens.train.safetensors").is_file():
        raise BadValue("work", "must hold tokens.train.safetensors, which encode writes", str(work))
    recipe, place = language_model.recipe_of(stage, int(tokens)), str(choose_device(device))
    bar, last = tqdm(total=recipe.steps, unit="step", mininterval=5), None
    for last in language_model.pretrain(work, recipe, compiled=compiled, device=place):
        bar.update(last.step + 1 - bar.n)
        if last.held_out is not None:
            bar.set_postfix(loss=f"{last.loss:.3f}", held_out=f"{last.held_out:.3f}")
    bar.close()
    return {"loss_log": language_model.read_checkpoint(work, stage)[1]["log"]}
