"""Looking into a finished classifier: which words spoke, what strength does, what was changed."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import torch

from lora_gpt.core.classify import BATCH_TOKENS, Classifier, spam_probabilities
from lora_gpt.core.lora import lora_layers, strength_of_each
from lora_gpt.core.model import GPTModel

MOST_WORDS = 120


@dataclass(frozen=True)
class Word:
    """One word of a message and what it did: `weight` is how far p_spam falls without it."""

    text: str
    weight: float
    without: float
    """p_spam of the message without this word."""


def word_attributions(classifier: Classifier, text: str) -> list[Word]:
    """Leave each word out in turn and ask again (occlusion, Zeiler and Fergus 2014, section 3).

    The first MOST_WORDS words are tried. A word goes with the white space behind it, the last one
    with that before it; all other white space stays, for the model reads it too.
    """
    words = list(re.finditer(r"\S+", text))
    cuts = [(word.start(), after.start()) for word, after in pairwise(words)]
    if words:
        cuts.append((words[-2].end() if len(words) > 1 else 0, len(text)))
    shorter = [text[:start] + text[end:] for start, end in cuts[:MOST_WORDS]]
    whole, *without = classifier.verdicts([text, *shorter])
    return [
        Word(word.group(), whole.p_spam - left.p_spam, left.p_spam)
        for word, left in zip(words[:MOST_WORDS], without, strict=True)
    ]


def strength_curve(
    turn: Callable[[], AbstractContextManager[Classifier]],
    text: str,
    strengths: Sequence[float],
    most: int = BATCH_TOKENS,
) -> list[tuple[float, float]]:
    """p_spam of `text` with the update at each strength: 0 is the frozen base under the new head.

    The message goes through at many strengths at once, in a fraction of the time that they take one
    after the other: at as many as have `most` tokens, BATCH_TOKENS at most. Each time `turn` lends
    the classifier, whose model is left at strength 1.
    """
    points: list[tuple[float, float]] = []
    while len(points) < len(strengths):
        with turn() as classifier:
            [sequence] = classifier.encode([text])
            part = strengths[len(points) :][: max(1, most // len(sequence))]
            with strength_of_each(classifier.model, part):
                found = spam_probabilities(classifier.model, [sequence] * len(part))
        points += zip(part, found, strict=True)
    return points


@dataclass(frozen=True)
class Update:
    """What training changed in one layer."""

    path: str
    size: float
    """Frobenius norm of the update over that of the frozen weight."""
    spectrum: tuple[float, ...]
    """Singular values of the update, largest first; there are at most `rank`."""


@torch.no_grad()
def updates(model: GPTModel) -> list[Update]:
    """Size and spectrum of every layer's update, in the order of the model.

    The update A B has rank r at most, so its singular values are those of an r x r matrix: with
    A = Q R and B^T = P S, they are those of R S^T. XL takes no longer than mini that way.
    """
    found = []
    for path, layer in lora_layers(model):
        left, right = (torch.linalg.qr(m.float().cpu())[1] for m in (layer.lora.A, layer.lora.B.T))
        values = torch.linalg.svdvals(left @ right.T) * layer.lora.scale
        size = values.norm() / layer.linear.weight.float().norm().cpu()
        found.append(Update(path, float(size), tuple(values.tolist())))
    return found
