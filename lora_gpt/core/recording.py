"""GPU work that is recorded once and played again (CUDA graphs).

A step on a few messages is a thousand short kernels; to launch each of them from Python takes many
times as long as the GPU needs to compute it. A recording is launched as a whole. It fixes the
kernels, their shapes and the places in memory that they read and write, so that what changes from
one time to the next must be written into those places before it is played. Knows nothing of models.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Work = Callable[[], T]


class Recorder:
    """Records work on the current CUDA device.

    All recordings of one recorder share their scratch memory: read what one returned before the
    next one plays.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, work: Work[T]) -> Work[T]:
        """A function that plays `work` again and returns what `work` returned when recorded, whose
        tensors then hold the new values.

        Runs `work` once before, since libraries set themselves up in their first call. Raises
        RuntimeError where something in `work` cannot be recorded: it waits for the GPU, say.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = work()

        def play() -> T:
            graph.replay()
            return result

        return play


@contextmanager
def undone(
    parameters: Sequence[Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[None]:
    """Whatever is learnt inside is forgotten: to record a step is to take it for the first times.

    Parameters and the optimizers' memory are put back in their places; a memory that was made
    inside is set to zeros, with which it begins.
    """

    def memory() -> list[Tensor]:
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        return [value for state in states for value in state.values()]

    kept = [each.detach().clone() for each in (*parameters, *memory())]
    try:
        yield
    finally:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            now = [*parameters, *memory()]
            for each in now[len(kept) :]:
                each.zero_()
            for each, before in zip(now, kept, strict=False):
                each.copy_(before)


def recorded_or_plain(work: Work[T]) -> Work[T]:
    """`work` as a recording, or as it is where it cannot be recorded."""
    try:
        return Recorder()(work)
    except RuntimeError:
        return work
