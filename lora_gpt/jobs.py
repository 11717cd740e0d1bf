"""The queue of runs, and the warm worker processes that take them first come, first served.

A worker is a process of its own (`lora_gpt.worker`), so that training never slows the page and a
crash never takes it down; it lives from run to run, because importing torch takes seconds, and is
replaced when it dies. One thread looks after each worker. Whatever there is to know of a run stands
in its folder. Knows nothing of torch or pages.
"""

import atexit
import math
import os
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from lora_gpt.events import Event, Failed, Queued, Resumed, Stopped
from lora_gpt.store import Run, RunStore, StoreError
from lora_gpt.worker import BYE, TAKEN

TRAIN = "lora_gpt.core.training:train"


class JobsError(ValueError):
    """The queue refuses. One sentence for people, with the field, the rule and the value."""


@dataclass(frozen=True)
class Limits:
    """Most runs that may wait at once; those being trained are not counted."""

    per_owner: int = 3
    in_all: int = 40


@dataclass(frozen=True)
class _Job:
    run: Run
    reservation: ExitStack
    """Held from the queue to the end, so that everyone can see that a living server has it."""


class Jobs:
    """Runs that wait, at most `workers` that are trained at a time, and how to stop them.

    `threads` is the number of CPU threads of each worker; None shares out the cores. `train` is the
    dotted name of the function that trains, `module:function`. Nothing is started before the first
    `submit`, `resume` or `warm_up`. Every method can be called from any thread.
    """

    def __init__(
        self,
        store: RunStore,
        workers: int = 1,
        limits: Limits | None = None,
        threads: int | None = None,
        train: str = TRAIN,
    ):
        if workers < 1:
            raise JobsError(f"workers: must be at least 1; got {workers}")
        self.store, self.limits = store, limits or Limits()
        each = threads or max(1, usable_cores() // workers)
        self._workers = [_Worker(store.root, train, each) for _ in range(workers)]
        self._threads: list[threading.Thread] = []
        self._waiting: deque[_Job] = deque()
        self._at_work: dict[str, _Job] = {}
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, run_id: str) -> None:
        """Queue a new run. Raises JobsError for one that was queued before, or a full queue."""
        run = self.store.open(run_id)
        with self._changed:
            if (status := run.status) in ("queued", "running"):
                raise JobsError(f"run: must not be queued or running already; got {status}")
            if run.since()[0]:
                raise JobsError(f"run: must be new to be started, else resume it; got {status}")
            self._enqueue(run, Queued())

    def resume(self, run_id: str) -> None:
        """Queue a run that was stopped, interrupted or failed; it goes on from its checkpoint.

        Raises JobsError for a run in another state, or a full queue.
        """
        run = self.store.open(run_id)
        with self._changed:
            if (status := run.status) not in ("stopped", "interrupted", "failed"):
                rule = "must be stopped, interrupted or failed to be resumed"
                raise JobsError(f"run: {rule}; got {status}")
            self._enqueue(run, Resumed(run.checkpoint_step()), Queued())

    def stop(self, run_id: str) -> None:
        """Stop a waiting run at once, a running one after its next event. JobsError for others."""
        run = self.store.open(run_id)
        with self._changed:
            job = next((job for job in self._waiting if job.run.id == run.id), None)
            if job is not None:
                run.append(Stopped(run.checkpoint_step()))
                self._waiting.remove(job)
                job.reservation.close()
            elif run.id in self._at_work or run.held or run.reserved:
                run.request_stop()  # in another server's queue it is heard when its turn comes
            else:
                raise JobsError(f"run: must be queued or running to be stopped; got {run.status}")

    def position(self, run_id: str) -> int | None:
        """Place in the queue, 1 for the next one; None for a run that does not wait."""
        with self._changed:
            ids = [job.run.id for job in self._waiting]
        return ids.index(run_id) + 1 if run_id in ids else None

    def warm_up(self) -> None:
        """Start the worker processes, so that the first run does not wait for torch."""
        with self._changed:
            self._start()

    def close(self, grace: float = 5.0) -> None:
        """End the workers. Runs under way are left between two events and can be resumed.

        A worker that has not left its run after `grace` seconds is killed.
        """
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._at_work.values()):
                job.reservation.close()
            self._waiting.clear()
            self._changed.notify_all()
        atexit.unregister(self.close)
        latest = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, latest - time.monotonic()))
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join(grace)

    def _enqueue(self, run: Run, *events: Event) -> None:
        if self._closed:
            raise JobsError(f"queue: must be open; got {run.id} after its end")
        mine = sum(job.run.owner == run.owner for job in self._waiting)
        if mine >= self.limits.per_owner:
            rule = f"at most {self.limits.per_owner} of your runs may wait at a time"
            raise JobsError(f"queue: {rule}; got one more, wait or stop one")
        if len(self._waiting) >= self.limits.in_all:
            rule = f"at most {self.limits.in_all} runs may wait at a time"
            raise JobsError(f"queue: {rule}; got one more, try again later")
        with ExitStack() as reservation:
            reservation.enter_context(run.reserve())
            run.clear_stop()
            for event in events:
                run.append(event)
            self._waiting.append(_Job(run, reservation.pop_all()))
        self._start()
        self._changed.notify()

    # --- the threads -----------------------------------------------------------------------------

    def _start(self) -> None:
        if self._threads or self._closed:
            return
        atexit.register(self.close)
        for worker in self._workers:
            thread = threading.Thread(target=self._look_after, args=(worker,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _look_after(self, worker: "_Worker") -> None:
        with suppress(OSError):  # told by the first run, if it lasts
            worker.ready()
        while (job := self._next()) is not None:
            try:
                self._carry_out(job.run, worker)
            finally:
                with self._changed:
                    del self._at_work[job.run.id]
                job.reservation.close()
            worker.see_off()
        worker.end()

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            job = self._waiting.popleft()
            self._at_work[job.run.id] = job
            return job

    def _carry_out(self, run: Run, worker: "_Worker") -> None:
        # The folder may be full or gone: then nobody can be told, and the queue goes on.
        with suppress(StoreError):
            try:
                code = worker.carry_out(run.id)
            except OSError as error:
                if self._closed:
                    return
                run.append(Failed(f"The worker process could not be started: {error.strerror}."))
                return
            if code is not None and not self._closed:
                run.log(
                    f"The worker process ended without a word (exit code {code}). Too little memory"
                    " is the usual cause. The run can be resumed."
                )


class _Worker:
    """One worker process at a time, started when it is needed and replaced when it has ended."""

    def __init__(self, root: Path, train: str, threads: int):
        self._command = [sys.executable, "-m", "lora_gpt.worker", str(root.resolve()), train]
        self._env = dict(os.environ)
        # Found even where the package is not installed, as when app.py is started from its folder.
        house = str(Path(__file__).resolve().parents[1])
        inherited = self._env.get("PYTHONPATH")
        self._env["PYTHONPATH"] = os.pathsep.join([house, inherited] if inherited else [house])
        # torch reads these when it is imported, in the worker alone.
        self._env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process: subprocess.Popen[str] | None = None
        self._killed = self._leaving = False
        self._lock = threading.Lock()

    def ready(self) -> subprocess.Popen[str]:
        """The living process. Raises OSError where none can be started."""
        with self._lock:
            if self._killed:
                raise OSError(0, "the queue is closed")
            if self._process is None or self._process.poll() is not None:
                self._close_pipes()
                self._process = subprocess.Popen(
                    self._command,
                    env=self._env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            return self._process

    def carry_out(self, run_id: str) -> int | None:
        """Have a run trained, to its end. Returns the exit code of a process that died over it."""
        process = self.ready()
        if not _hand_over(process, run_id):  # it died while it was idle: the run never began
            process.wait()
            process = self.ready()
            _hand_over(process, run_id)
        answer = _answer(process)
        self._leaving = answer == BYE
        return None if answer else process.wait()

    def see_off(self) -> None:
        """Collect a process that has said goodbye: to end takes it seconds, for which its run does
        not wait."""
        if self._process is not None and self._leaving:
            self._process.wait()

    def kill(self) -> None:
        """End the process for good. It has no run, or one that it did not leave in time."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def end(self) -> None:
        """Kill, and close the pipes: for the thread that reads them."""
        self.kill()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout) if self._process else ():
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _hand_over(process: "subprocess.Popen[str]", run_id: str) -> bool:
    """Whether the process has taken the run."""
    assert process.stdin is not None
    try:
        process.stdin.write(run_id + "\n")
        process.stdin.flush()
    except OSError:
        return False
    return _answer(process) == TAKEN


def _answer(process: "subprocess.Popen[str]") -> str:
    """The next word of the process, empty where it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def usable_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPU cores that this process may use: its affinity, and a container's share where one is set.

    `limit` is the file of Linux's cgroup v2, 'quota period' in microseconds or 'max period'.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = map(float, limit.read_text().split())
        cores = min(cores, math.ceil(quota / period))
    return max(1, cores)
