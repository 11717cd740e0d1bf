"""The worker's side of a job: one run after the other, each from its folder and into its folder.

`carry_out` consumes `train` and keeps what it says; the command line uses it as it is. `main` is
the warm process that `jobs` starts: it imports torch once, reads run ids from its standard input
and answers in single words. Knows nothing of torch itself (`train` comes by name) or of pages.
"""

import os
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path

from lora_gpt.config import RunConfig
from lora_gpt.events import Event, Failed, Finished, Started, Step, Stopped
from lora_gpt.store import Run, RunStore, StoreError

Train = Callable[[RunConfig, bytes | None], Iterator[Event]]

TAKEN, AGAIN, BYE = "taken", "again", "bye"
"""What the worker answers: that it has a run in hand; at its end, that it takes the next one or
that a fresh process should."""
LOOK, GRACE = 0.2, 10.0
"""Seconds between two looks at whether the server lives, and from its end to ours at the latest."""


def carry_out(run: Run, train: Train) -> Generator[Event, None, None]:
    """Train `run` from its last checkpoint, keep every event in its folder and yield it.

    Ends with Finished, with Stopped where a stop was asked for, or with Failed, whose message is
    one sentence. A consumer that closes it early leaves a run that can be resumed. Raises
    StoreError where another process trains the run already.
    """
    with run.claim():
        try:
            yield from _kept(run, train)
        except Exception as error:  # the job's boundary: whatever it was, the run's folder says so
            failed = Failed(sentence(error))
            # A full disk may refuse both: then the folder says 'interrupted', which is true too.
            with suppress(StoreError):
                if failed.message != str(error):
                    run.log("".join(traceback.format_exception(error)))
            with suppress(StoreError):
                run.append(failed)
            yield failed


def _kept(run: Run, train: Train) -> Iterator[Event]:
    if run.is_finished:  # by another process, while this one waited
        return
    step = run.checkpoint_step()
    if run.stop_requested():
        yield _stopped(run, step)
        return
    events = train(run.local_config(), run.checkpoint())
    try:
        for event in events:
            run.keep(event)
            yield event
            if isinstance(event, Started):
                step = event.first_step
            elif isinstance(event, Step):
                step = event.step + 1
            if run.stop_requested() and not isinstance(event, Finished):
                yield _stopped(run, step)
                return
    finally:
        if isinstance(events, Generator):
            events.close()


def _stopped(run: Run, step: int) -> Stopped:
    stopped = Stopped(step)
    run.append(stopped)
    return stopped


def sentence(error: Exception) -> str:
    """What people are told of a fault: the house's own errors in their own words."""
    # The process itself runs as __main__: its own name does not tell the house.
    house = RunConfig.__module__.partition(".")[0]
    own = type(error).__module__.partition(".")[0] == house
    if own or type(error) is ArithmeticError:
        return str(error)
    if isinstance(error, ArithmeticError):
        return f"The numbers left their range ({error}); a lower learning rate usually helps."
    # torch's own kinds are not imported here, so they are known by their words.
    if isinstance(error, MemoryError) or ("memory" in str(error) and "alloc" in str(error)):
        return (
            "The memory of this machine did not suffice; a smaller batch, shorter messages or a"
            " smaller model need less."
        )
    name = type(error).__name__
    return (
        f"The training stopped on an unexpected fault: {name}. Details stand in log.txt of the run."
    )


# --- the process ---------------------------------------------------------------------------------


def main(root: str, train_name: str) -> None:
    """Take run ids from standard input until it ends, or until a fault makes a fresh start wise."""
    # Ctrl+C reaches the whole group of processes; ours ends when the server has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Answers have the pipe to themselves: whatever training prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    store = RunStore(Path(root))

    def train(config: RunConfig, checkpoint: bytes | None) -> Iterator[Event]:
        return pkgutil.resolve_name(train_name)(config, checkpoint)

    # Import torch while nobody waits; a fault that lasts is told by the first run.
    with suppress(ImportError, OSError):
        pkgutil.resolve_name(train_name)
    for line in sys.stdin:
        again = True
        with suppress(OSError):
            print(TAKEN, file=answers, flush=True)
        try:
            again = _serve(store.open(line.strip()), train)
        except StoreError as error:
            print(error, file=sys.stderr)
        with suppress(OSError):
            print(AGAIN if again else BYE, file=answers, flush=True)
        if not again:
            return


def _serve(run: Run, train: Train) -> bool:
    """Carry out one run of the queue; False where this process should not take another one."""
    alone, done = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(run, alone, done), daemon=True).start()
    failed = False
    try:
        with closing(carry_out(run, train)) as events:
            for event in events:
                failed = isinstance(event, Failed)
                if alone.is_set():
                    return False
    finally:
        done.set()
    # After a fault a device may be unusable and memory may be lost: only a new process is sure.
    return not failed


def _watch(run: Run, alone: threading.Event, done: threading.Event) -> None:
    """Say when the server has let go of the run, closed or dead, and end a process that lingers.

    A step of the training may take long: the run is left between two events if one comes in time.
    """
    while not done.wait(LOOK):
        if not run.reserved:
            alone.set()
            if not done.wait(GRACE):
                os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
