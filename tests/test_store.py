import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lora_gpt import store as store_module
from lora_gpt.config import BadValue, RunConfig
from lora_gpt.events import (
    Adapter,
    Checkpoint,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Started,
    Stopped,
    Write,
)
from lora_gpt.store import UPLOADS, Run, RunNotFound, RunStore, StoreError

FINISHED = Finished(4, 0.1, 0.2, 1.0, None, {}, {}, 1.0)
STARTED = Started(4, 4, 0, 0, 0, 0, 0, 1, 2, "cpu", 1)


class Clock:
    """Seconds that pass one by one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs", Clock())


@pytest.fixture
def run(store: RunStore) -> Run:
    return store.create(RunConfig(), "ada")


def writes(contents: bytes) -> Write:
    """What an event carries for a file of `contents`."""

    def write(path: Path) -> None:
        path.write_bytes(contents)

    return write


# --- folders -------------------------------------------------------------------------------------


def test_a_created_run_can_be_opened(store):
    """What was created is what is opened: config, owner and time."""
    config = RunConfig().changed(rank=4, data="sms-spam")
    run = store.create(config, "ada")
    assert store.open(run.id) == run
    assert (run.config, run.owner, run.created) == (config, "ada", 1.0)


def test_files_are_plain(run):
    """config.json is the config and nothing else, so that it can be read and used alone."""
    stored = json.loads((run.path / "config.json").read_text())
    assert RunConfig.from_json(stored) == run.config
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "owner.json"]


def test_ids_are_unguessable_and_safe_for_folders(store):
    """18 random hexadecimal digits: 72 bits, no sign that a shell or a file system minds."""
    ids = {store.create(RunConfig()).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(each) == 18 and set(each) <= set("0123456789abcdef") for each in ids)


@pytest.mark.parametrize(
    "run_id",
    ["../x", "a/b", "", ".", "..", "a\\b", "/etc", ".new-abc", "a\n", "a" * 65, "-a", None],
)
def test_ids_that_are_paths_are_refused(store, run, run_id):
    """No id leads out of the store, not even where a run stands there."""
    outside = store.root.parent / "x"
    outside.mkdir()
    (outside / "config.json").write_text(json.dumps(RunConfig().to_json()))
    with pytest.raises(RunNotFound, match="must be the id of a run"):
        store.open(run_id)


def test_an_unknown_run_is_not_found(store):
    with pytest.raises(RunNotFound, match="still there; got 'abc'"):
        store.open("abc")


def test_runs_stand_newest_first(store):
    """Runs are sorted by their time of creation, and can be asked for by owner."""
    runs = [store.create(RunConfig(), owner) for owner in ("ada", "bob", "ada")]
    assert store.runs() == runs[::-1]
    assert store.runs("ada") == [runs[2], runs[0]]
    assert store.runs("") == []


def test_broken_folders_are_skipped(store, run):
    """One folder that cannot be read hides no other; opening it says what is wrong."""
    (store.root / "broken").mkdir()
    (store.root / "broken" / "config.json").write_text('{"rank": 0}')
    (store.root / "torn").mkdir()
    (store.root / "torn" / "config.json").write_text('{"ra')
    (store.root / "list").mkdir()
    (store.root / "list" / "config.json").write_text("[]")
    (store.root / "empty").mkdir()
    (store.root / "a file").write_text("")
    assert store.runs() == [run]
    with pytest.raises(StoreError, match=r"broken must hold a readable config.json; rank: must"):
        store.open("broken")
    assert [*store.broken()] == ["broken", "list", "torn"]
    assert "broken must hold a readable config.json; rank: must" in store.broken()["broken"]


def test_a_closed_folder_hides_no_other_run(store, run, monkeypatch):
    """Simulated, because root may read anywhere: nothing in the folder can be looked at."""
    closed = store.create(RunConfig(), "ada")

    def closing(really):
        def look(path, *more, **named):
            if path.parent == closed.path:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return really(path, *more, **named)

        return look

    monkeypatch.setattr(Path, "stat", closing(Path.stat))
    monkeypatch.setattr(Path, "read_text", closing(Path.read_text))
    assert store.runs() == store.runs("ada") == [run]
    assert [*store.broken()] == [closed.id] and "Permission denied" in store.broken()[closed.id]


@pytest.mark.parametrize("content", ["[]", "5", "{", '{"created": "now"}', '{"created": NaN}'])
def test_an_owner_file_that_is_none_hides_no_other_run(store, run, content):
    broken = store.create(RunConfig(), "ada")
    (broken.path / "owner.json").write_text(content)
    assert store.runs() == [run]
    assert "must hold a readable owner.json" in store.broken()[broken.id]


@pytest.mark.parametrize("name", ["config.json", "owner.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"created": 1' + "0" * 400 + "}"])
def test_json_that_cannot_be_taken_in_hides_no_other_run(store, run, name, content):
    """Nested too deeply, or with a number longer than any float."""
    broken = store.create(RunConfig(), "ada")
    (broken.path / name).write_text(content)
    assert store.runs() == store.runs("ada") == [run]
    with pytest.raises(StoreError, match=f"must hold a readable {name}"):
        store.open(broken.id)


def test_a_store_without_a_folder_is_empty(store):
    """Looking makes no folder."""
    assert store.runs() == [] and not store.root.exists()


def test_a_run_from_elsewhere_is_a_folder_copied_in(store, run):
    """A copied folder without owner.json is nobody's run, dated by its config file."""
    (run.path / "owner.json").unlink()
    os.utime(run.path / "config.json", (100, 100))
    copied = store.open(run.path.rename(store.root / "Sample-1").name)
    assert (copied.id, copied.owner, copied.created) == ("Sample-1", "", 100)


def test_owned_by(run):
    assert run.owned_by("ada") and not run.owned_by("bob") and not run.owned_by("")


def test_nobody_is_no_owner(store):
    """Whoever says so is not believed."""
    for name in store_module.NOBODY:
        run = store.create(RunConfig(), name)
        assert not any(run.owned_by(each) for each in store_module.NOBODY)
        assert run not in store.runs(name) and run in store.runs()


def test_an_owner_that_no_encoding_has(store):
    """JSON can hold half of a pair of characters; such a folder spoils no list."""
    run = store.create(RunConfig(), "ada")
    (run.path / "owner.json").write_text('{"owner": "\\ud800", "created": 1}', encoding="utf-8")
    assert [each.id for each in store.runs()] == [run.id] and store.runs("ada") == []
    assert not store.open(run.id).owned_by("ada")


def test_of_other_peoples_runs_only_the_owner_is_read(store, monkeypatch):
    """A list is asked for every second; the folder may hold thousands."""
    mine, theirs = store.create(RunConfig(), "ada"), store.create(RunConfig(), "bob")
    opened, really = [], store.open
    monkeypatch.setattr(store, "open", lambda name: opened.append(name) or really(name))
    assert store.runs("ada") == [mine] and opened == [mine.id] != [theirs.id]


@pytest.mark.parametrize("suffix", [".csv", ".TSV", ".txt"])
def test_an_uploaded_file_moves_with_its_run(store, tmp_path, suffix):
    """The config names the file relative to the folder, so a copied folder works elsewhere."""
    run = store.create(RunConfig(), messages=b"ham,hello", name=f"C:/My {suffix}/a{suffix}")
    assert run.config.data.data == f"messages{suffix.lower()}"
    moved = RunStore(tmp_path / "elsewhere")
    moved.root.mkdir()
    run.path.rename(moved.root / run.id)
    path = Path(moved.open(run.id).local_config().data.data)
    assert path.is_absolute() and path.read_bytes() == b"ham,hello"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Grüße & co (1).csv", "Grüße & co (1).csv"),
        (r"C:\Users\ada\../mine.tsv", "mine.tsv"),
        ("<img src=x>\n\u202e\ud800.csv", "<img src=x>.csv"),
        ("a" * 300 + ".csv", "a" * 52 + "…aaa.csv"),
    ],
    ids=["plain", "path", "signs", "long"],
)
def test_an_uploaded_file_is_told_by_its_own_name(store, name, told):
    """Without folders, without what cannot be printed, and short; nothing else depends on it."""
    run = store.open(store.create(RunConfig(), messages=b"", name=name).id)
    assert run.told_config() == RunConfig().changed(data=told)
    assert run.config.data.data in UPLOADS


def test_a_run_that_kept_no_name_of_its_file_can_be_opened(store):
    """As runs were made before; and a name beside other messages stands for nothing."""
    run = store.create(RunConfig(), "ada", b"", "own.csv")
    about = json.loads((run.path / "owner.json").read_text(encoding="utf-8"))
    (run.path / "owner.json").write_text(json.dumps(about | {"upload": ""}), encoding="utf-8")
    assert store.open(run.id).told_config().data.data == "messages.csv"
    del about["upload"]
    (run.path / "owner.json").write_text(json.dumps(about), encoding="utf-8")
    assert store.open(run.id).told_config() == run.config
    bundled = store.create(RunConfig())
    (bundled.path / "owner.json").write_text('{"upload": "own.csv"}', encoding="utf-8")
    assert store.open(bundled.id).told_config() == RunConfig()


def test_only_an_uploaded_file_is_looked_for_in_the_folder(store):
    """A name of a data set, or another path, is left as it is."""
    for data in ("bundled", "messages.csv", "owner.json", "/somewhere/messages.csv"):
        config = RunConfig().changed(data=data)
        assert store.create(config).local_config() == config


def test_an_upload_of_another_kind_is_refused(store):
    with pytest.raises(BadValue, match=r"data: must be a file ending in .csv, .tsv or .txt; got"):
        store.create(RunConfig(), messages=b"", name="messages.xlsx")


def test_delete_removes_the_folder(store, run):
    run.delete()
    assert store.runs() == [] and list(store.root.iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path, run):
    """A folder that was being deleted at once, one that was being made when it is old."""
    root = run.path.parent
    for name in (".deleted-abc-1", ".new-old", ".new-young"):
        (root / name).mkdir()
        (root / name / "config.json").write_text("{}")
    os.utime(root / ".new-old", (1000, 1000))
    os.utime(root / ".new-young", (2000, 2000))
    store = RunStore(root, lambda: 4700.0)
    store.sweep()
    assert sorted(path.name for path in root.iterdir()) == [".new-young", run.id]
    RunStore(tmp_path / "nowhere").sweep()


def test_a_run_that_is_worked_on_is_not_deleted(run):
    run.append(Queued())
    for hold, status in ((run.claim, "running"), (run.reserve, "queued")):
        with hold(), pytest.raises(StoreError, match=f"must be stopped .* got {status}"):
            run.delete()


# --- events --------------------------------------------------------------------------------------


def test_since_gives_only_what_is_new(run):
    """Asking again from the offset that was given never repeats and never leaves out an event."""
    assert run.since(0) == ([], 0)
    run.append(Queued())
    events, offset = run.since(0)
    assert events == [Queued()]
    assert run.since(offset) == ([], offset)
    run.append(STARTED)
    run.append(Stopped(1))
    assert run.since(offset)[0] == [STARTED, Stopped(1)]


def test_an_incomplete_line_is_left_for_the_next_time(run):
    """A line is read once its end is there, whole."""
    run.append(Queued())
    _, offset = run.since(0)
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"kind": "stopped", ')
        file.flush()
        assert run.since(offset) == ([], offset)
        file.write('"step": 3}\n')
    assert run.since(offset)[0] == [Stopped(3)]


def test_a_torn_line_is_skipped(run):
    """After a crash in the middle of a line the run goes on, and only that line is lost."""
    run.append(Queued())
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "progress", "stage": "\xc3')
    assert run.status == "interrupted"
    run.append(Resumed(2))
    run.append(Stopped(3))
    assert run.since(0)[0] == [Queued(), Resumed(2), Stopped(3)]
    assert run.status == "stopped"


def test_files_of_events_stand_beside_them(run):
    """Checkpoint and adapter become files; the events stay in the list, without their contents."""
    assert run.checkpoint() is None and run.adapter_files() == {} and run.checkpoint_step() == 0
    run.keep(Checkpoint(2, {"checkpoint.safetensors": writes(b"two")}))
    run.keep(Checkpoint(4, {"checkpoint.safetensors": writes(b"four")}))
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    run.keep(Adapter(4, {name: writes(contents) for name, contents in files.items()}))
    assert run.checkpoint() == b"four" and run.checkpoint_step() == 4
    assert run.adapter_files() == files
    assert run.since(0)[0] == [Checkpoint(2), Checkpoint(4), Adapter(4)]
    assert not [path.name for path in run.path.iterdir() if path.name.endswith(".new")]


def test_a_finished_run_keeps_no_checkpoint(run):
    """It cannot be resumed, and the checkpoint is its largest file."""
    run.keep(Checkpoint(4, {"checkpoint.safetensors": writes(b"four")}))
    run.keep(FINISHED)
    assert run.checkpoint() is None and run.checkpoint_step() == 0
    assert run.since(0)[0] == [Checkpoint(4), FINISHED]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(run, monkeypatch):
    """A full disk loses the new checkpoint, not the last one, and is told in one sentence."""
    run.keep(Checkpoint(2, {"checkpoint.safetensors": writes(b"two")}))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(StoreError, match=r"run folder: needs free disk space; got .*\)$"):
        run.keep(Checkpoint(4, {"checkpoint.safetensors": writes(b"four")}))
    assert run.checkpoint() == b"two" and run.checkpoint_step() == 2
    assert not list(run.path.glob("*.new")) and not list(run.path.glob(".*.new"))


def test_no_event_writes_a_file_of_another_name(run):
    with pytest.raises(ValueError, match=r"files: must be .* got '../owner.json'"):
        run.keep(Checkpoint(2, {"../owner.json": writes(b"")}))


def test_a_folder_that_is_gone_is_told(run):
    run.delete()
    with pytest.raises(StoreError, match="run folder: must still be there"):
        run.append(Queued())
    assert run.since(0) == ([], 0) and run.status == "interrupted"


def test_a_closed_disk_is_told(tmp_path):
    """Where the root cannot be a folder, creating says so and leaves nothing behind."""
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match="run folder: must"):
        RunStore(tmp_path / "runs").create(RunConfig())
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_read_only_folder_is_told(run, monkeypatch):
    """Simulated, because root may write anywhere."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StoreError, match="must be a folder that this program may write to; got"):
        run.append(Queued())


# --- status --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "alone", "reserved"),
    [
        ([], "interrupted", "interrupted"),
        ([Queued()], "interrupted", "queued"),
        ([Queued(), Progress("loading", 0, 1)], "interrupted", "queued"),
        ([Queued(), STARTED], "interrupted", "interrupted"),
        ([Queued(), STARTED, Stopped(2)], "stopped", "stopped"),
        ([Stopped(2), Resumed(2), Queued()], "interrupted", "queued"),
        ([Queued(), Failed("x")], "failed", "failed"),
        ([Queued(), STARTED, FINISHED], "finished", "finished"),
        ([Queued(), STARTED, FINISHED, Checkpoint(4)], "finished", "finished"),
    ],
)
def test_status(run, events, alone, reserved):
    """Status follows from the events and from who holds the run; a holder means running."""
    for event in events:
        run.append(event)
    assert run.status == alone
    with run.reserve():
        assert run.status == reserved
        with run.claim():
            assert run.status == "running"
    assert run.status == alone


def test_status_reads_long_files_from_the_end(run):
    """Neither a line longer than a block nor many lines of news hide the end."""
    run.append(FINISHED)
    for _ in range(3):
        run.append(Progress("x" * 100_000, 0, 1))
    assert run.status == "finished"


def test_only_one_process_trains_a_run(run):
    """A second claim is refused, also by the process itself; then the run is free again."""
    assert not run.held
    with run.claim():
        assert run.held
        with pytest.raises(StoreError, match="must not be trained twice at once"), run.claim():
            pytest.fail("claimed twice")
    assert not run.held
    with run.claim():
        assert run.held


def test_looking_does_not_disturb_a_claim(run):
    """The lock that a look takes for a moment is waited for, not taken as an answer."""
    with run.claim():
        pass
    for _ in range(50):
        assert not run.held
        with run.claim():
            assert run.held


def test_another_look_is_not_taken_for_a_holder(run, monkeypatch):
    """A process that looks has the lock for a moment: who still has it a moment later holds it."""
    (run.path / "claim.lock").touch()
    look = FileLock(run.path / "claim.lock")
    look.acquire()
    monkeypatch.setattr(store_module.time, "sleep", lambda seconds: look.release())
    assert not run.held


def test_a_dead_process_holds_nothing(store, run):
    """The system lets go of a killed process's claim: the run can be told from a living one."""
    code = (
        "import sys, time; from pathlib import Path; from lora_gpt.store import RunStore\n"
        "with RunStore(Path(sys.argv[1])).open(sys.argv[2]).claim():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), run.id],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout.readline().strip() == b"held"
        assert run.held and run.status == "running"
        process.kill()
    assert not run.held and run.status == "interrupted"


def test_a_look_leaves_no_trace(run):
    """A folder that nobody ever trained in gets no lock file by being looked at."""
    assert not run.held and not run.reserved
    assert not list(run.path.glob("*.lock"))


def test_stop_request(run):
    """Asking twice is asking once, and can be taken back."""
    assert not run.stop_requested()
    run.request_stop()
    run.request_stop()
    assert run.stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


def test_log_grows_by_lines(run):
    run.log("one\n")
    run.log("two")
    assert (run.path / "log.txt").read_text() == "one\ntwo\n"
