import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_gpt.config import RunConfig
from lora_gpt.events import Checkpoint, Failed, Finished, Queued, Resumed, Started, Step, Stopped
from lora_gpt.jobs import Jobs, JobsError, Limits, usable_cores
from lora_gpt.store import Run, RunStore, StoreError
from lora_gpt.worker import carry_out, sentence

TRAIN = "fake_training:train"
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _fake_training_can_be_found(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


@pytest.fixture
def jobs(store: RunStore) -> Iterator[Jobs]:
    queue = Jobs(store, limits=Limits(per_owner=2, in_all=3), train=TRAIN)
    yield queue
    queue.close()


def make(store: RunStore, weights: str = "", steps: int = 4, owner: str = "ada") -> Run:
    return store.create(RunConfig().changed(weights=weights, max_steps=steps), owner)


def wait(until: Callable[[], object], seconds: float = 10) -> None:
    latest = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < latest, "waited in vain"
        time.sleep(0.01)


def ended(run: Run) -> str:
    """The status of a run that a queue has let go of."""
    wait(lambda: not run.reserved)
    return run.status


def kinds(run: Run) -> list[str]:
    return [type(event).__name__ for event in run.since()[0]]


def steps(run: Run) -> list[int]:
    return [event.step for event in run.since()[0] if isinstance(event, Step)]


def process_of(run: Run) -> int:
    started = [event for event in run.since()[0] if isinstance(event, Started)]
    return int(started[-1].device.removeprefix("process "))


# --- carrying out one run, in this process -------------------------------------------------------


@pytest.fixture
def train():
    return pkgutil.resolve_name(TRAIN)


def test_every_event_is_kept_and_passed_on(store, train):
    """Whoever consumes a run sees what its folder keeps, in the same order."""
    run = make(store)
    seen = list(carry_out(run, train))
    assert run.since()[0] == seen and run.status == "finished"
    assert run.checkpoint() is None and set(run.adapter_files()) > {"adapter_config.json"}


def test_training_gets_the_uploaded_file_by_its_place(store, train):
    """The fake writes the file that its config names into the adapter."""
    config = RunConfig().changed(max_steps=1)
    run = store.create(config, messages=b"uploaded", name="a.csv")
    list(carry_out(run, train))
    assert run.adapter_files()["adapter_model.safetensors"] == b"uploaded"


def test_a_run_is_held_while_it_is_carried_out(store, train):
    """Two processes never write into one folder, and closing lets go."""
    run = make(store)
    events = carry_out(run, train)
    next(events)
    assert run.status == "running"
    with pytest.raises(StoreError, match="must not be trained twice"):
        next(carry_out(run, train))
    events.close()
    assert run.status == "interrupted"


def test_a_stop_is_seen_after_the_event_at_hand(store, train):
    """The last checkpoint stays, and Stopped names the steps that were made."""
    run = make(store)
    for event in carry_out(run, train):
        if event == Checkpoint(2):
            run.request_stop()
    assert event == Stopped(2) and run.status == "stopped" and run.checkpoint() == b"2"


def test_a_run_goes_on_from_its_checkpoint(store, train):
    """Steps since the checkpoint are made again, none before it."""
    run = make(store)
    for event in carry_out(run, train):
        if isinstance(event, Step) and event.step == 2:
            run.request_stop()
    assert event == Stopped(3)
    run.clear_stop()
    list(carry_out(run, train))
    assert steps(run) == [0, 1, 2, 2, 3] and run.status == "finished"


@pytest.mark.parametrize(
    ("weights", "message", "logged"),
    [
        ("bad value", "rank: must be smaller; got 8", False),
        ("not finite", "learning_rate: must be lower; got 1", False),
        ("overflow", "The numbers left their range (too large); a lower learning rate", True),
        ("memory", "The memory of this machine did not suffice; a smaller batch", True),
        ("device memory", "The memory of this machine did not suffice; a smaller batch", True),
        ("surprise", "stopped on an unexpected fault: RuntimeError. Details stand in log", True),
    ],
)
def test_a_fault_becomes_one_sentence(store, train, weights, message, logged):
    """The house's own errors speak for themselves; the details of others stand in the log."""
    run = make(store, weights)
    *_, last = carry_out(run, train)
    assert isinstance(last, Failed) and message in last.message
    assert run.since()[0][-1] == last and run.status == "failed"
    log = run.path / "log.txt"
    assert log.exists() == logged
    assert not logged or "Traceback" in log.read_text()


def test_a_fault_that_cannot_be_written_is_still_told(store, train):
    """A folder that vanished under the training ends it with a sentence, not with a crash."""
    run = make(store)
    events = carry_out(run, train)
    next(events)
    (run.path / "events.jsonl").unlink()
    run.path.rename(store.root / "gone")
    *_, last = events
    assert isinstance(last, Failed) and last.message.startswith("run folder: must still be there")


def test_an_error_of_the_house_keeps_its_words():
    assert sentence(StoreError("run: must be.")) == "run: must be."


# --- the queue -----------------------------------------------------------------------------------


def test_a_run_is_trained_in_a_process_of_its_own(store, jobs):
    """The page's process does no work and needs no torch; the worker has it, once, for all runs."""
    first, second = make(store), make(store)
    jobs.submit(first.id)
    jobs.submit(second.id)
    assert (ended(first), ended(second)) == ("finished", "finished")
    assert kinds(first)[0] == "Queued" and steps(first) == steps(second) == [0, 1, 2, 3]
    assert process_of(first) == process_of(second) != os.getpid()


def test_runs_are_taken_first_come_first_served(store, jobs):
    """One at a time; each knows its place, and moves up."""
    runs = [make(store, "slow", 10), make(store), make(store)]
    jobs.submit(runs[0].id)
    wait(lambda: runs[0].status == "running")
    jobs.submit(runs[1].id)
    jobs.submit(runs[2].id)
    assert [jobs.position(run.id) for run in runs] == [None, 1, 2]
    assert [run.status for run in runs] == ["running", "queued", "queued"]
    assert [ended(run) for run in runs] == ["finished"] * 3
    finish = [(run.path / "events.jsonl").stat().st_mtime_ns for run in runs]
    assert finish == sorted(finish)


def test_two_workers_do_not_interfere(store):
    """Runs side by side, each in its own process, write into their own folders alone."""
    jobs = Jobs(store, workers=2, train=TRAIN)
    runs = [make(store, "slow", 20), make(store, "slow", 15)]
    for run in runs:
        jobs.submit(run.id)
    wait(lambda: all(run.status == "running" for run in runs))
    assert [ended(run) for run in runs] == ["finished", "finished"]
    assert [steps(run) for run in runs] == [list(range(20)), list(range(15))]
    assert process_of(runs[0]) != process_of(runs[1])
    jobs.close()


def test_a_double_click_starts_one_run(store, jobs):
    """Of many submissions at once one is taken, in the queue, under way and at the end."""
    run, refusals = make(store, "slow", 10), []

    def click() -> None:
        try:
            jobs.submit(run.id)
        except JobsError as error:
            refusals.append(str(error))

    clicks = [threading.Thread(target=click) for _ in range(5)]
    for each in clicks:
        each.start()
    for each in clicks:
        each.join()
    assert len(refusals) == 4 and "must not be queued or running already; got" in refusals[0]
    wait(lambda: run.status == "running")
    with pytest.raises(JobsError, match="already; got running"):
        jobs.submit(run.id)
    assert ended(run) == "finished" and kinds(run).count("Queued") == 1
    with pytest.raises(JobsError, match="must be new to be started, else resume it; got finished"):
        jobs.submit(run.id)
    with pytest.raises(JobsError, match="to be resumed; got finished"):
        jobs.resume(run.id)
    with pytest.raises(JobsError, match="to be stopped; got finished"):
        jobs.stop(run.id)


def test_two_servers_on_one_folder_start_one_run(store, jobs):
    """A run that waits in another server's queue is refused here."""
    run = make(store)
    with run.reserve():
        with pytest.raises(StoreError, match="must stand in one queue at a time"):
            jobs.submit(run.id)
        assert kinds(run) == []
    jobs.submit(run.id)
    assert ended(run) == "finished"


def test_a_run_in_another_servers_queue_can_be_stopped(store, jobs, train):
    """Its owner sees it as queued wherever they look; it ends when its turn comes."""
    run = make(store)
    with run.reserve():
        run.append(Queued())
        jobs.stop(run.id)
    assert list(carry_out(run, train)) == [Stopped(0)]


def test_the_queue_has_limits(store, jobs):
    """Neither one owner nor all together fill the queue without end; a refused run is as it was."""
    blocker = make(store, "slow", 1000)
    jobs.submit(blocker.id)
    wait(lambda: blocker.status == "running")
    for _ in range(2):
        jobs.submit(make(store).id)
    refused = make(store)
    with pytest.raises(JobsError, match="at most 2 of your runs may wait at a time"):
        jobs.submit(refused.id)
    jobs.submit(make(store, owner="bob").id)
    with pytest.raises(JobsError, match="at most 3 runs may wait at a time"):
        jobs.submit(make(store, owner="eve").id)
    assert kinds(refused) == [] and not refused.reserved


def test_stop(store, jobs):
    """A running run stops after its event, a waiting one at once; others go on."""
    running, waiting, last = make(store, "slow", 1000), make(store), make(store)
    for run in (running, waiting, last):
        jobs.submit(run.id)
        wait(lambda: steps(running))
    jobs.stop(waiting.id)
    assert waiting.status == "stopped" and kinds(waiting) == ["Queued", "Stopped"]
    assert jobs.position(last.id) == 1
    wait(lambda: running.checkpoint())
    jobs.stop(running.id)
    assert ended(running) == "stopped"
    stopped = running.since()[0][-1]
    assert isinstance(stopped, Stopped) and stopped.step == steps(running)[-1] + 1
    assert ended(last) == "finished"


def test_resume(store, jobs):
    """A stopped run goes on from its checkpoint, and its folder tells the whole story."""
    run = make(store, "slow", 30)
    jobs.submit(run.id)
    wait(lambda: run.checkpoint_step() >= 4)
    jobs.stop(run.id)
    assert ended(run) == "stopped"
    step = run.checkpoint_step()
    jobs.resume(run.id)
    assert ended(run) == "finished"
    events = run.since()[0]
    again = events.index(Resumed(step))
    assert isinstance(events[again - 1], Stopped) and events[again + 1] == Queued()
    later = [event.step for event in events[again:] if isinstance(event, Step)]
    assert later == list(range(step, 30))


def test_the_worker_process_tells_a_fault_of_the_house_in_its_words(store, jobs):
    """There the module runs under another name, and must know its house all the same."""
    run = make(store, "bad value")
    jobs.submit(run.id)
    assert ended(run) == "failed"
    assert run.since()[0][-1].message == "rank: must be smaller; got 8"


def test_a_failed_run_can_be_resumed(store, jobs):
    """A fault may lie in the machine: a full disk, a network that is away."""
    run = make(store, "surprise")
    jobs.submit(run.id)
    assert ended(run) == "failed"
    jobs.resume(run.id)
    assert ended(run) == "failed" and steps(run) == [0, 1] and Resumed(2) in run.since()[0]


def test_a_failed_run_does_not_wait_for_its_process_to_end(store, jobs, tmp_path):
    """To let go of a device takes seconds: the run can be deleted by then, and nothing stays."""
    end, config = tmp_path / "end", RunConfig()
    run = store.create(config.changed(weights="lingers", data=str(end)), "ada")
    jobs.submit(run.id)
    assert ended(run) == "failed"
    (leaving,) = [worker._process for worker in jobs._workers]
    assert leaving.poll() is None
    run.delete()
    end.touch()
    wait(lambda: leaving.returncode == 0)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_worker_is_replaced(store, jobs):
    """The run is left as interrupted, its log says why, the next one starts, and it can go on."""
    killed, following = make(store, "slow", 40), make(store)
    jobs.submit(killed.id)
    jobs.submit(following.id)
    wait(lambda: killed.checkpoint_step() >= 2)
    os.kill(process_of(killed), signal.SIGKILL)
    assert ended(killed) == "interrupted"
    assert "ended without a word (exit code -9)" in (killed.path / "log.txt").read_text()
    assert ended(following) == "finished" and process_of(following) != process_of(killed)
    jobs.resume(killed.id)
    assert ended(killed) == "finished" and steps(killed)[-1] == 39


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_an_idle_worker_that_was_killed_is_replaced(store, jobs):
    first, second = make(store), make(store)
    jobs.submit(first.id)
    assert ended(first) == "finished"
    os.kill(process_of(first), signal.SIGKILL)
    jobs.submit(second.id)
    assert ended(second) == "finished"


def test_a_worker_that_ends_itself_is_replaced(store, jobs):
    """Also where a library calls exit."""
    run, following = make(store, "exit"), make(store)
    jobs.submit(run.id)
    jobs.submit(following.id)
    assert (ended(run), ended(following)) == ("interrupted", "finished")


def test_after_a_fault_the_worker_is_fresh(store, jobs):
    """A device in an unknown state is not handed to the next run."""
    failed, following = make(store, "surprise"), make(store)
    jobs.submit(failed.id)
    jobs.submit(following.id)
    assert (ended(failed), ended(following)) == ("failed", "finished")
    assert process_of(failed) != process_of(following)


def test_a_train_function_that_is_missing_fails_the_run(store):
    """A broken installation is told by the run, not by silence."""
    jobs = Jobs(store, train="fake_training_that_is_missing:train")
    run = make(store)
    jobs.submit(run.id)
    assert ended(run) == "failed"
    assert "unexpected fault: ModuleNotFoundError" in run.since()[0][-1].message
    jobs.close()


def test_a_worker_that_cannot_be_started_fails_the_run(store, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    jobs = Jobs(store, train=TRAIN)
    run = make(store)
    jobs.submit(run.id)
    assert ended(run) == "failed"
    assert run.since()[0][-1].message.startswith("The worker process could not be started: No such")
    jobs.close()


def test_a_run_deleted_under_the_worker_harms_no_other(store, jobs):
    """The queue goes on when a folder vanishes while its run waits."""
    first, gone, last = make(store, "slow", 20), make(store), make(store)
    for run in (first, gone, last):
        jobs.submit(run.id)
        wait(lambda: first.status == "running")
    gone.path.rename(store.root / ".gone")
    assert ended(first) == ended(last) == "finished"


# --- the end -------------------------------------------------------------------------------------


def test_close_leaves_runs_that_can_be_resumed(store):
    """Nothing is lost and nothing lives on; what waited or ran is interrupted, never silently
    started by the next server."""
    jobs = Jobs(store, train=TRAIN)
    running, waiting = make(store, "slow", 1000), make(store)
    jobs.submit(running.id)
    wait(lambda: running.checkpoint_step())
    jobs.submit(waiting.id)
    process = process_of(running)
    jobs.close()
    jobs.close()
    assert (running.status, waiting.status) == ("interrupted", "interrupted")
    assert kinds(running)[-1] in ("Step", "Checkpoint") and not is_alive(process)
    with pytest.raises(JobsError, match="queue: must be open"):
        jobs.resume(running.id)
    later = Jobs(store, train=TRAIN)
    later.warm_up()
    assert (running.status, waiting.status) == ("interrupted", "interrupted")
    later.resume(waiting.id)
    assert ended(waiting) == "finished" and Resumed(0) in waiting.since()[0]
    later.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_worker_does_not_outlive_its_server(store):
    """A server that is killed cannot say good-bye: its worker notices and leaves the run."""
    run, waiting = make(store, "slow", 5000), make(store)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lora_gpt.jobs import Jobs; from lora_gpt.store import RunStore\n"
        "jobs = Jobs(RunStore(Path(sys.argv[1])), train=sys.argv[2])\n"
        "for each in sys.argv[3:]: jobs.submit(each)\n"
        "time.sleep(60)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), TRAIN, run.id, waiting.id],
        cwd=HERE.parent,
    )
    wait(lambda: steps(run))
    assert (run.status, waiting.status) == ("running", "queued")
    worker = process_of(run)
    server.kill()
    server.wait()
    wait(lambda: not is_alive(worker))
    assert (run.status, waiting.status) == ("interrupted", "interrupted")


def test_a_server_that_ends_by_itself_takes_its_worker_along(store):
    """Without a word from its caller a queue ends with the program, and does not hold it up."""
    run = make(store, "slow", 5000)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lora_gpt.jobs import Jobs; from lora_gpt.store import RunStore\n"
        "run = RunStore(Path(sys.argv[1])).open(sys.argv[3])\n"
        "Jobs(RunStore(Path(sys.argv[1])), train=sys.argv[2]).submit(run.id)\n"
        "while not run.checkpoint_step(): time.sleep(0.01)\n"
        "print('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(store.root), TRAIN, run.id]
    server = subprocess.run(
        arguments, cwd=HERE.parent, timeout=20, capture_output=True, text=True, check=True
    )
    assert server.stdout == "False\n", "the queue must not bring torch into the page's process"
    assert run.status == "interrupted" and not is_alive(process_of(run))


def is_alive(process: int) -> bool:
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        os.kill(process, 0)
        stat = Path(f"/proc/{process}/stat")
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except OSError:
        return False


# --- threads -------------------------------------------------------------------------------------


def test_usable_cores_knows_a_containers_share(tmp_path):
    """A container on a large machine must not start a thread for every core of it."""
    share = tmp_path / "cpu.max"
    everything = usable_cores(tmp_path / "missing")
    assert 1 <= everything <= (os.cpu_count() or 1)
    for text, cores in (("max 100000", everything), ("50000 100000", 1), ("garbage", everything)):
        share.write_text(text)
        assert usable_cores(share) == cores


def test_a_queue_needs_a_worker(store):
    with pytest.raises(JobsError, match="workers: must be at least 1; got 0"):
        Jobs(store, workers=0)


def test_finished_says_that_the_fake_needs_no_torch(store, jobs):
    """Keeps these tests quick, and the worker itself free of torch."""
    run = make(store)
    jobs.submit(run.id)
    assert ended(run) == "finished"
    finished = run.since()[0][-1]
    assert isinstance(finished, Finished) and finished.test == {"torch": False}
