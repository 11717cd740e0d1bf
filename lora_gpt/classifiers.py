"""Finished runs as classifiers, kept ready: the frozen base in memory once, each adapter beside it.

Joins run folders with the core; knows nothing of queues, owners or pages.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lora_gpt.cache import Cache
from lora_gpt.config import MODELS, RunConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.adapter import apply_adapter
from lora_gpt.core.classify import Classifier, share
from lora_gpt.core.lora import prepare, set_strength
from lora_gpt.core.model import GPTModel
from lora_gpt.core.weights import load_base
from lora_gpt.store import Run, RunNotFound

BASES, CLASSIFIERS = 3, 16
"""How many are kept: a base of GPT-2 takes half a gigabyte, an adapter a few megabytes."""


class Classifiers:
    """Classifiers of runs, made at the first question and kept for the next."""

    def __init__(self) -> None:
        self._bases: Cache[GPTModel] = Cache(BASES)
        self._made: Cache[Classifier] = Cache(CLASSIFIERS)
        self._turn = threading.Lock()

    @contextmanager
    def of(self, run: Run, strength: float = 1.0) -> Iterator[Classifier]:
        """The run's classifier with its adapter at `strength`, for one caller at a time.

        Raises RunNotFound for a run that has no adapter yet.
        """
        classifier = self._made.get((run.path, "after"), lambda: self._trained(run))
        # Strength is a state of the layers; two computations at once are no faster than in turn.
        with self._turn:
            set_strength(classifier.model, strength)
            yield classifier

    @contextmanager
    def before(self, run: Run) -> Iterator[Classifier]:
        """The same model before its training: the base under the new head's starting values."""
        classifier = self._made.get((run.path, "before"), lambda: self._untrained(run))
        with self._turn:
            yield classifier

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
