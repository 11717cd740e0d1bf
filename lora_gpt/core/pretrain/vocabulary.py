"""Step 2: a byte-level BPE vocabulary learnt from the filtered text.

The merges are learnt by Hugging Face's `tokenizers` and written in tiktoken's format, so that the
app itself needs tiktoken alone.
"""

import base64
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from lora_gpt.core.pretrain.corpus import SOURCES, STAGES, read_documents
from lora_gpt.core.tokenizer import PATTERN

CHARACTERS = 12_000_000
WEIGHTS = {"gutenberg": 0.3, "threads": 5.0}
"""Weight of a source in the vocabulary against its share of the first stage: words of old books are
long and rare in messages, and messages are what the model is for."""


def write_vocabulary(corpus: Path, out: Path, size: int, seed: int = 0) -> int:
    """Learn `size` - 1 tokens (one is kept for the end of text) and write them; returns how many.

    Each source gives characters by its share of the first stage, so that a second one can go on.
    """
    rng, texts = random.Random(seed), []
    for source in (each for each in SOURCES if each.file in STAGES["prose"]):
        share = STAGES["prose"][source.file]
        wanted = int(CHARACTERS * share * WEIGHTS.get(source.file, 1.0))
        documents = read_documents(corpus, source, "train")
        rng.shuffle(documents)
        for document in documents:
            texts.append(document)
            wanted -= len(document)
            if wanted <= 0:
                break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    to_byte = _bytes_of_signs()
    tokens = [bytes(to_byte[sign] for sign in token) for token, _ in ranked]
    # tiktoken takes the rank of a single byte for its token; any order of the 256 will do.
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(lines), encoding="ascii")
    return len(tokens)


def _bytes_of_signs() -> dict[str, int]:
    """The printable signs by which byte-level BPE writes the 256 bytes (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {chr(byte): byte for byte in printable}
    return signs | {chr(256 + place): byte for place, byte in enumerate(others)}
