"""Texts -> verdicts, with a model whose head has two classes.

Messages of any number and length go through in batches of similar length, so that few pads are laid
out; what comes back is in the order that was asked. A verdict never depends on its neighbours.
"""

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor

from lora_gpt.config import SPAM_FROM
from lora_gpt.core import tokenizer
from lora_gpt.core.model import GPTModel
from lora_gpt.core.packing import Packing

BATCH_TOKENS = 4096
"""Most tokens, pads counted, that go through the model at once."""


@dataclass(frozen=True)
class Verdict:
    """What the model says of one message."""

    text: str
    label: str
    """'spam' where p_spam is at least SPAM_FROM, otherwise 'ham'."""
    p_spam: float
    truncated: bool = False
    """Whether the message was longer than the model reads; its end was then not looked at."""


def verdict(text: str, p_spam: float, truncated: bool = False) -> Verdict:
    return Verdict(text, "spam" if p_spam >= SPAM_FROM else "ham", p_spam, truncated)


def share(model: GPTModel) -> GPTModel:
    """A module tree of its own over the same weights: injecting into it leaves `model` as it is.

    Costs no memory. Whoever trains the copy's shared weights trains both, so share frozen models.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def batches(sequences: Sequence[list[int]], most: int) -> list[list[int]]:
    """Places of `sequences` in batches of similar length, of at most `most` tokens with the pads; a
    longer sequence is alone."""
    ordered = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    found: list[list[int]] = []
    for place in ordered:
        width = len(sequences[place])
        if found and (len(found[-1]) + 1) * width <= most:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def pack(
    sequences: Sequence[list[int]], device: torch.device, multiple: int = 1
) -> tuple[Tensor, Packing]:
    """Token lists -> packed tokens (N,) and where they stand, N rounded up to `multiple`."""
    packing = Packing([len(sequence) for sequence in sequences], device, multiple)
    tokens = [token for sequence in sequences for token in sequence] + [0] * packing.filler
    return torch.tensor(tokens, device=device), packing


@torch.no_grad()
def logits_in_parts(
    model: GPTModel, sequences: Sequence[list[int]]
) -> Generator[int, None, Tensor]:
    """Logits at the last token of each sequence, (len(sequences), 2) on the CPU, in order.

    Yields after each batch how many tokens are done. The model's training mode is as before when
    this ends.
    """
    was_training, device = model.training, model.tok_emb.weight.device
    model.eval()
    logits, done = torch.empty(len(sequences), model.out_head.out_features), 0
    try:
        for places in batches(sequences, BATCH_TOKENS):
            chosen = [sequences[place] for place in places]
            tokens, packing = pack(chosen, device, model.multiple)
            logits[places] = model.last_logits(tokens, packing).cpu()
            done += sum(map(len, chosen))
            yield done
    finally:
        model.train(was_training)
    return logits


def logits_of(model: GPTModel, sequences: Sequence[list[int]]) -> Tensor:
    """What `logits_in_parts` comes to, in one go."""
    parts = logits_in_parts(model, sequences)
    while True:
        try:
            next(parts)
        except StopIteration as done:
            return done.value


def spam_probabilities(model: GPTModel, sequences: Sequence[list[int]]) -> list[float]:
    return F.softmax(logits_of(model, sequences), dim=-1)[:, 1].tolist()


class Classifier:
    """A finished model and its tokenizer."""

    def __init__(self, model: GPTModel, encoding: tiktoken.Encoding, max_tokens: int = 0):
        self.model, self.encoding = model, encoding
        self.longest = tokenizer.longest_message(encoding, model.cfg.context_length, max_tokens)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [tokenizer.encode(self.encoding, text, self.longest) for text in texts]

    def verdicts(self, texts: Sequence[str]) -> list[Verdict]:
        """A verdict for each text, in order."""
        sequences, truncated = [], []
        for text in texts:
            tokens = self.encoding.encode_ordinary(text)
            sequences.append(tokenizer.ended(self.encoding, tokens[: self.longest]))
            truncated.append(len(tokens) > self.longest)
        return [*map(verdict, texts, self.probabilities(sequences), truncated)]

    def probabilities(self, sequences: Sequence[list[int]]) -> list[float]:
        """p_spam of each token list, in order."""
        return spam_probabilities(self.model, sequences)
