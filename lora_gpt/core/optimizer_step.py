"""One step of the optimizer: forward, loss, backward, clipping, update; two ways to one result.

`PackedStep` multiplies no pad, on any device. `RecordedStep` pads a batch to one of a few widths
and plays what was recorded for that width: on a GPU it is not the pads that cost, but launching
kernels one by one. Knows nothing of epochs, schedules, events or files.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_gpt.core.classify import pack
from lora_gpt.core.model import GPTModel
from lora_gpt.core.packing import Packing, Rectangle
from lora_gpt.core.recording import Recorder, Work, undone

WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens that a batch is padded to: each at most half as wide again as the one before."""


@dataclass(frozen=True)
class Outcome:
    """What a step says: the loss before its update in nats a message, the norm of its gradient
    before clipping, and how many messages were right before it."""

    loss: float
    gradient_norm: float
    right: int

    @classmethod
    def of(cls, result: Tensor) -> "Outcome":
        loss, norm, right = result.tolist()
        return cls(loss, norm, int(right))


def optimizer_of(trained: Sequence[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW on `trained`. On a GPU its rate and its count of steps lie there too, so that a
    recording can hold it."""
    device = trained[0].device
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW(
        trained,
        lr=torch.zeros((), device=device) if on_gpu else 0.0,
        weight_decay=weight_decay,
        fused=device.type in ("cpu", "cuda"),  # one call for all, not ten for each
        capturable=on_gpu,
    )


SAMPLE = 4_000_000
"""Parameters that an update is timed on: more than a processor's cache holds."""


def seconds_of_update(parameters: int, device: torch.device) -> float:
    """Seconds that a step takes here and now after its gradients are known: clipping and AdamW on
    so many `parameters`, the best of some tries. Asked again after a minute only."""
    return _seconds_in_this_minute(int(time.monotonic() / 60), parameters, device)


@lru_cache(maxsize=64)
def _seconds_in_this_minute(minute: int, parameters: int, device: torch.device) -> float:
    timed = min(parameters, SAMPLE)
    trained = [nn.Parameter(torch.zeros(timed, device=device))]
    optimizer = optimizer_of(trained, 0.0)

    def once() -> float:
        begun = time.perf_counter()
        trained[0].grad = torch.zeros_like(trained[0])
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return parameters / timed * min(once() for _ in range(4))  # the first one warms up


class PackedStep:
    """Steps on what is trainable in `model`, for batches of `sequences` with their `labels` (1 for
    spam); gradients are clipped at the norm `clip`, 0 for never."""

    def __init__(
        self,
        model: GPTModel,
        sequences: Sequence[list[int]],
        labels: Tensor,
        clip: float,
        weight_decay: float,
    ):
        self.model, self.sequences = model, sequences
        self.device = model.tok_emb.weight.device
        self.labels = labels.to(self.device)
        self.clip = clip or float("inf")
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(self.trained, weight_decay)

    def __call__(self, places: list[int], rate: float, seed: int) -> Outcome:
        """A step at the learning rate `rate` on the sequences at `places`; `seed` is for dropout,
        which draws from the global generator and so would depend on the past."""
        torch.manual_seed(seed)
        self._set(rate)
        chosen = [self.sequences[place] for place in places]
        tokens, packing = pack(chosen, self.device, self.model.multiple)
        return Outcome.of(self.learn(tokens, packing, self.labels[places]))

    def learn(self, tokens: Tensor, packing: Packing, labels: Tensor) -> Tensor:
        """The step itself, on the device alone: loss, norm and right answers, (3,)."""
        logits = self.model.last_logits(tokens, packing)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        right = (logits.argmax(-1) == labels).sum()
        return torch.stack([loss.detach(), norm, right])

    def _set(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class RecordedStep(PackedStep):
    """As `PackedStep`, for batches of `batch_size`, by recordings: one for each width, made when a
    batch first needs it. All messages lie on the device from the beginning, a step sends their
    numbers. Where a recording is refused it goes on as a `PackedStep` does."""

    def __init__(
        self,
        *parts,
        batch_size: int,
        recorder: Callable[[], Callable[[Work[Tensor]], Work[Tensor]]] = Recorder,
    ):
        super().__init__(*parts)
        self._record, self.refused = recorder(), ""
        context = self.model.cfg.context_length
        self.widths = [*(width for width in WIDTHS if width < context), context]
        lengths = torch.tensor([len(sequence) for sequence in self.sequences])
        flat = [token for sequence in self.sequences for token in sequence]
        # A row that is padded at the end of all messages reads on behind them.
        self._tokens = torch.tensor(flat + [0] * context, device=self.device)
        self._lengths = lengths.to(self.device)
        self._begins = (lengths.cumsum(0) - lengths).to(self.device)
        self._places = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        self._plays: dict[int, Work[Tensor]] = {}

    def prepare(self, batches: Iterable[list[int]]) -> Iterator[tuple[int, int]]:
        """Record what `batches` need; yields (done, all) before each and at the end."""
        needed = {self._width_of(places): places for places in batches}
        for done, (width, places) in enumerate(sorted(needed.items())):
            yield done, len(needed)
            self._places.copy_(torch.tensor(places))
            self._playing(width)
        yield len(needed), len(needed)

    def __call__(self, places: list[int], rate: float, seed: int) -> Outcome:
        self._places.copy_(torch.tensor(places))
        play = self._playing(self._width_of(places))
        if play is None:
            return super().__call__(places, rate, seed)
        torch.manual_seed(seed)
        self._set(rate)
        return Outcome.of(play())

    def _width_of(self, places: list[int]) -> int:
        longest = max(len(self.sequences[place]) for place in places)
        return next(width for width in self.widths if width >= longest)

    def _playing(self, width: int) -> Work[Tensor] | None:
        """The recording for `width`, None where it was refused."""
        if width not in self._plays and not self.refused:
            with undone(self.trained, [self.optimizer]):
                try:
                    self._plays[width] = self._record(lambda: self._work(width))
                except RuntimeError as error:  # out of memory is one as well
                    self.refused = str(error).strip().split("\n")[0]
        return self._plays.get(width)

    def _work(self, width: int) -> Tensor:
        lengths = self._lengths.index_select(0, self._places)
        begins = self._begins.index_select(0, self._places)
        at = begins[:, None] + torch.arange(width, device=self.device)
        tokens = self._tokens.index_select(0, at.flatten())
        labels = self.labels.index_select(0, self._places)
        return self.learn(tokens, Rectangle(lengths, width), labels)
