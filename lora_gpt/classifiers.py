"""Finished runs as classifiers, kept ready: the frozen base in memory once, each adapter beside it.

Joins run folders with the core; knows nothing of queues, owners or pages.
"""

import copy
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from lora_gpt.cache import Cache
from lora_gpt.config import MODELS, RunConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.adapter import apply_adapter
from lora_gpt.core.answering import PackedLinear, for_answers
from lora_gpt.core.classify import Classifier, batches, share
from lora_gpt.core.lora import prepare, set_strength
from lora_gpt.core.model import GPTModel
from lora_gpt.core.weights import load_base
from lora_gpt.store import Run, RunNotFound

BASES, CLASSIFIERS = 3, 24
"""How many are kept, up to three classifiers of a run: a base of GPT-2 takes half a gigabyte, an
adapter a few megabytes, a model that only answers two thirds of a base."""
MOST_BYTES = 4 * 2**30
"""Of all the bases that are kept, and of all the classifiers with the bases under them: a run that
trained every parameter holds a whole model of its own."""
ANSWERING_BYTES = 2**30
"""Of a model's parameters, up to which a classifier has a second model that only answers."""
TURN = 1024
"""Tokens that are classified before another caller gets a turn: some thirty messages, or one as
long as GPT-2 reads, which takes it about a second on a CPU."""
PAUSE = 0.001
"""Seconds; a lock that is taken again at once is not given to those who wait."""


class Classifiers:
    """Classifiers of runs, made at the first question and kept for the next."""

    def __init__(self) -> None:
        self._bases: Cache[GPTModel] = Cache(BASES, _fit)
        self._made: Cache[Classifier] = Cache(CLASSIFIERS, lambda made: _fit(c.model for c in made))
        self._turn = threading.Lock()

    def in_turn(self, run: Run, strength: float = 1.0) -> Classifier:
        """The run's classifier with its adapter at `strength`, for any number of texts: others are
        let in between them, whatever strength they want. Raises as `of` does."""
        made = self._answering(run) if strength == 1 else self._after(run)
        return _InTurn(made, strength, self._turn)

    @contextmanager
    def of(self, run: Run) -> Iterator[Classifier]:
        """The run's classifier with its adapter beside the base, at full strength, for one caller
        at a time.

        Raises RunNotFound for a run that has no adapter yet.
        """
        classifier = self._after(run)
        time.sleep(PAUSE)
        # Strength is a state of the layers; two computations at once are no faster than in turn.
        with self._turn:
            set_strength(classifier.model, 1.0)
            yield classifier

    def before(self, run: Run) -> Classifier:
        """The same model before its training: the base under the new head's starting values."""
        made = self._made.get((run.path, "before"), lambda: self._untrained(run))
        return _InTurn(made, 0.0, self._turn)  # an untrained adapter changes nothing

    def _after(self, run: Run) -> Classifier:
        return self._made.get((run.path, "after"), lambda: self._trained(run))

    def _answering(self, run: Run) -> Classifier:
        """The same at full strength for good: a third less time for a message."""
        return self._made.get((run.path, "answering"), lambda: _only_answering(self._after(run)))

    def _trained(self, run: Run) -> Classifier:
        files = run.adapter_files()
        if not files:
            raise RunNotFound(f"run: {run.id} has no adapter yet; it is kept when training ends")
        model = share(self._base(run.config))
        apply_adapter(model, files)
        return self._ready(model, run.config)

    def _untrained(self, run: Run) -> Classifier:
        config = run.config
        model = share(self._base(config))
        prepare(model, config.training.method, config.lora, config.seed)
        return self._ready(model, config)

    def _ready(self, model: GPTModel, config: RunConfig) -> Classifier:
        encoding = tokenizer.load(MODELS[config.model].encoding)
        return Classifier(model.eval(), encoding, config.training.max_tokens)

    def _base(self, config: RunConfig) -> GPTModel:
        """The frozen base that `config` starts from, shared by all runs that do."""
        seed = config.seed if config.init == "random" else 0
        key = (config.model, config.shape, config.init, config.weights, seed)

        def load() -> GPTModel:
            loading = load_base(config)
            while True:
                try:
                    next(loading)
                except StopIteration as done:
                    return done.value.requires_grad_(False)

        return self._bases.get(key, load)


class _InTurn(Classifier):
    """A classifier that takes turns with all others, a few sequences at a time."""

    def __init__(self, made: Classifier, strength: float, turn: threading.Lock):
        self.model, self.encoding, self.longest = made.model, made.encoding, made.longest
        self._strength, self._turn = strength, turn

    def probabilities(self, sequences: Sequence[list[int]]) -> list[float]:
        """p_spam of each token list, in order."""
        found = [0.0] * len(sequences)
        for number, places in enumerate(batches(sequences, TURN)):
            if number:
                time.sleep(PAUSE)
            with self._turn:
                set_strength(self.model, self._strength)
                told = super().probabilities([sequences[place] for place in places])
            for place, p_spam in zip(places, told, strict=True):
                found[place] = p_spam
        return found


def _only_answering(made: Classifier) -> Classifier:
    """`made` on a model that only answers; `made` itself where that would be too large."""
    if sum(parameter.nbytes for parameter in made.model.parameters()) > ANSWERING_BYTES:
        return made
    answering = copy.copy(made)
    answering.model = for_answers(made.model)
    return answering


def _fit(models: Iterable[GPTModel]) -> bool:
    """Whether they take no more memory than they may, a tensor that several share counted once."""
    modules = [module for model in models for module in model.modules()]
    tensors = {p.data_ptr(): p.nbytes for m in modules for p in m.parameters(recurse=False)}
    packed = {id(m): m.weight.nbytes for m in modules if isinstance(m, PackedLinear)}
    return sum(tensors.values()) + sum(packed.values()) <= MOST_BYTES
