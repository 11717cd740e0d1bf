"""The command line, called in process: what it prints, its JSON, its exit codes and refusals."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_gpt import service as service_room
from lora_gpt.__main__ import build_parser, main
from lora_gpt.config import RunConfig
from lora_gpt.core import fetching, tokenizer
from lora_gpt.events import Failed, Finished, Started, Step
from lora_gpt.store import RunStore

HOUSE = Path(__file__).parents[1]
TINY = ["--init", "random", "--max-steps", "4", "--batch-size", "4", "--no-keep-apart"]
PROMISED = {
    "run",
    "seconds",
    "train_seconds",
    "steps",
    "train_size",
    "test_size",
    "train_accuracy",
    "test_accuracy",
    "test_interval",
    "baseline_accuracy",
    "leaked_test_messages",
    "trainable",
    "total",
    "peak_memory_mb",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """A few short messages are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A file of 60 messages."""
    lines = [f"spam\tClaim prize number {n} now at win{n}.info, reply YES" for n in range(30)]
    lines += [f"ham\tSee you at {n} o'clock near the {n}th gate, love Ann" for n in range(30)]
    path = tmp_path_factory.mktemp("data") / "few.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    """(the folder of the runs, what training printed) of one small training."""
    runs = tmp_path_factory.mktemp("runs")
    words = [sys.executable, "-m", "lora_gpt", "train", "--data", str(few), *TINY]
    done = subprocess.run(
        [*words, "--runs", str(runs), "--json"],
        capture_output=True,
        text=True,
        cwd=HOUSE,
        timeout=90,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return runs, done.stdout.splitlines()


@pytest.fixture
def run(trained):
    """The id of the trained run."""
    return json.loads(trained[1][-1])["run"]


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# --- structure -----------------------------------------------------------------------------------


def test_counts_of_gpt2(capsys):
    """The fixed numbers, as text and as JSON; gpt2 is the model that is meant."""
    assert main(["count", "--rank", "8", "--alpha", "16", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["model"] == "gpt2" and (found["rank"], found["alpha"]) == (8, 16)
    assert [(s["stage"], s["trainable"], s["total"]) for s in found["stages"]] == [
        ("base", 163_037_184, 163_037_184),
        ("lora", 1_327_104, 164_364_288),
        ("classifier", 1_328_642, 125_768_450),
    ]
    assert [round(100 * stage["fraction"], 2) for stage in found["stages"]] == [100, 0.81, 1.06]
    assert "1,327,104" in lines[2] and lines[2].endswith("0.81%")


def test_counts_follow_the_options(capsys):
    """Rank x (in + out), summed over the layers that were chosen."""
    assert main(["count", "--model", "mini", "--rank", "3", "--targets", "W_key", "--json"]) == 0
    stages = last_json(capsys)["stages"]
    assert stages[1]["trainable"] == 4 * 3 * (384 + 384)


def test_another_shape_is_counted_and_drawn(capsys):
    """That of a checkpoint with fewer blocks; one that is none gets its sentence."""
    assert main(["count", "--shape", "768x12x3x1024", "--json"]) == 0
    assert last_json(capsys)["stages"][1]["trainable"] == 1_327_104 // 4
    assert main(["tree", "--shape", "768x12x3x1024", "--stage", "lora"]) == 0
    assert "0-2  TransformerBlock × 3" in capsys.readouterr().out
    assert main(["count", "--shape", "768x7x3x1024"]) == 2
    assert "shape: n_heads must divide emb_dim 768" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "trainable", "total", "holds"),
    [
        ("base", 163_037_184, 163_037_184, "Linear"),
        ("lora", 1_327_104, 164_364_288, "LinearWithLoRA"),
        ("classifier", 1_328_642, 125_768_450, "new"),
    ],
)
def test_the_tree_at_each_stage(capsys, stage, trainable, total, holds):
    """One module a line with its counts, twelve blocks folded into one."""
    assert main(["tree", "--stage", stage, "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["stage"], found["trainable"], found["total"]) == (stage, trainable, total)
    assert f"{total:,}" in lines[0] and any("0-11  TransformerBlock × 12" in x for x in lines)
    assert any(holds in line for line in lines)


def test_the_tree_as_pytorch_prints_it(capsys):
    assert main(["tree", "--torch", "--stage", "lora", "--rank", "4"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("GPTModel(\n  (tok_emb): Embedding(50257, 768)")
    assert "(lora): LoRALayer(rank=4, alpha=16)" in printed


# --- train and what follows ----------------------------------------------------------------------


def test_training_prints_what_the_labs_print(trained):
    """Losses as they come, the test accuracy with its interval; one object of JSON at the end."""
    _, lines = trained
    assert re.fullmatch(r"Run \w+ in .+", lines[0])
    steps = [line for line in lines if line.startswith("Epoch")]
    assert steps
    for line in steps:
        assert re.fullmatch(r"Epoch 1 \| Batch \d+ \| Loss: \d+\.\d{4}", line)
    assert any(re.match(r"Step 4 \| Validation loss: \d", line) for line in lines)
    assert re.match(r"Test accuracy \d+\.\d% \(95% interval", lines[-4])
    assert lines[-3].startswith("Linear baseline ") and "linear baseline" in lines[-2]


def test_training_ends_with_json(trained):
    """Every promised key, and numbers that fit together."""
    found = json.loads(trained[1][-1])
    assert found.keys() >= PROMISED
    assert (found["steps"], found["train_size"], found["test_size"]) == (4, 42, 12)
    assert found["train_size"] + found["validation_size"] + found["test_size"] == 60
    low, high = found["test_interval"]
    assert 0 <= low <= found["test_accuracy"] <= high <= 1
    assert 0 <= found["baseline_accuracy"] <= 1 and 0 <= found["train_accuracy"] <= 1
    assert found["leaked_test_messages"] == 0 and found["near_test_messages"] > 0
    assert 0 < found["trainable"] < found["total"]
    assert 0 < found["train_seconds"] < found["seconds"]
    assert found["peak_memory_mb"] is None or found["peak_memory_mb"] > 50


def test_evaluate(trained, run, few, capsys):
    """On a file: the metrics of all its messages."""
    runs = str(trained[0])
    assert main(["evaluate", "--run", run, "--runs", runs, "--data", str(few), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["run"], found["data"], found["size"]) == (run, str(few), 60)
    assert found["tn"] + found["fp"] + found["fn"] + found["tp"] == 60
    assert lines[0].startswith(f"Accuracy {100 * found['accuracy']:.1f}% (95% interval")


def test_classify(trained, run, capsys):
    """A verdict for each message, in order."""
    texts = ["See you at 4, love Ann", "Claim your prize now", "50% off = great"]
    assert main(["classify", "--run", run, "--runs", str(trained[0]), *texts, "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [each["text"] for each in found] == texts
    for line, each in zip(lines, found, strict=True):
        assert each.keys() == {"text", "label", "p_spam"}
        assert each["label"] == ("spam" if each["p_spam"] >= 0.5 else "ham")
        assert line.startswith(each["label"]) and line.endswith(each["text"])
        assert f"{100 * each['p_spam']:.1f}%" in line


def test_classify_at_another_strength(trained, run, capsys):
    """0 is the base under the trained head."""
    said = []
    for strength in ("1", "0"):
        words = ["classify", "--run", run, "--runs", str(trained[0]), "--strength", strength]
        assert main([*words, "See you at 4", "--json"]) == 0
        said.append(last_json(capsys)[0]["p_spam"])
    assert said[0] != said[1]


def test_a_run_is_found_by_its_folder(trained, run, capsys):
    """Also one that was copied from elsewhere."""
    assert main(["classify", "--run", str(trained[0] / run), "hello", "--json"]) == 0
    assert last_json(capsys)[0]["text"] == "hello"
    assert main(["report", "--run", str(trained[0] / run)]) == 0


def test_a_run_is_found_from_within(trained, run, monkeypatch, capsys):
    """'.' is a folder with a name."""
    monkeypatch.chdir(trained[0] / run)
    assert main(["report", "--run", "."]) == 0
    assert f": run {run}\n" in capsys.readouterr().out


def test_a_folder_that_cannot_be_an_id_is_told_the_rule(trained, run, tmp_path, capsys):
    folder = tmp_path / "my run"
    shutil.copytree(trained[0] / run, folder)
    said = refused(["report", "--run", str(folder)], capsys)
    assert said.endswith("the id of a run: at most 64 letters, digits, - and _; got 'my run'")


def test_a_folder_is_not_taken_for_a_bundled_run(trained, run, tmp_path, monkeypatch, capsys):
    """Where it is called as one: the path says which is meant."""
    monkeypatch.setattr(service_room, "SAMPLES", tmp_path / "samples")
    elsewhere = tmp_path / "elsewhere" / "lora-rank-8"
    bundled = tmp_path / "samples" / "lora-rank-8"
    for folder in (elsewhere, bundled):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text((trained[0] / run / "config.json").read_text())
    changed = (elsewhere / "config.json").read_text().replace('"seed": 42', '"seed": 41')
    (elsewhere / "config.json").write_text(changed)
    assert main(["report", "--run", str(elsewhere)]) == 0
    assert "--seed 41" in capsys.readouterr().out


def test_report(trained, run, capsys):
    """Markdown, and the same under 'report' in the JSON."""
    assert main(["report", "--run", run, "--runs", str(trained[0]), "--json"]) == 0
    printed, _, last = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    assert printed.startswith(f"# LoRA on mini (bundled): run {run}\n")
    assert json.loads(last)["report"].strip() == printed.strip()
    assert "## 5. Test accuracy" in printed and "Not known yet" not in printed


def test_runs(trained, run, tmp_path, capsys):
    """Newest first with its accuracy; an empty folder says what makes one."""
    assert main(["runs", "--runs", str(trained[0]), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    (found,) = [each for each in json.loads(last) if each["run"] == run]
    assert found["status"] == "finished" and 0 <= found["test_accuracy"] <= 1
    assert any(line.startswith(run) and "finished" in line for line in lines)
    assert main(["runs", "--runs", str(tmp_path)]) == 0
    assert "No run yet" in capsys.readouterr().out


def test_a_broken_run_is_a_line_that_says_so(tmp_path, capsys):
    """A folder that cannot be read, or whose end is none, hides no other."""
    store = RunStore(tmp_path / "runs")
    torn, ended, whole = (store.create(RunConfig()) for _ in range(3))
    (torn.path / "config.json").write_text('{"ra')
    ended.append(Finished(4, 0.1, 0.2, 1.0, None, {"accuracy": None}, {}, 1.0))
    assert main(["runs", "--runs", str(store.root), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = {each["run"]: (each["status"], each["label"]) for each in json.loads(last)}
    assert len(lines) == len(found) == 3 and found[whole.id][0] == "interrupted"
    assert found[torn.id][0] == found[ended.id][0] == "broken"
    assert "must hold a readable config.json" in found[torn.id][1]
    assert "must hold a readable events.jsonl; metrics must be" in found[ended.id][1]
    assert "events.jsonl" in refused(["report", "--run", str(ended.path)], capsys)


def test_delete(tmp_path, capsys):
    """By id or by folder, once; a bundled run has no id here."""
    store = RunStore(tmp_path / "runs")
    first, second, kept = (store.create(RunConfig()) for _ in range(3))
    assert main(["delete", first.id, "--runs", str(store.root), "--json"]) == 0
    printed, last = capsys.readouterr().out.splitlines()
    assert printed == f"Run {first.id} is deleted." and json.loads(last) == {"run": first.id}
    assert main(["delete", str(second.path), "--runs", str(store.root)]) == 0
    assert [run.id for run in store.runs()] == [kept.id]
    with kept.claim():
        assert "must be stopped before" in refused(
            ["delete", kept.id, "--runs", str(store.root)], capsys
        )
    for gone in (first.id, "rank-8", "../runs"):
        assert "run: " in refused(["delete", gone, "--runs", str(store.root)], capsys)
    assert kept.path.is_dir()


def test_a_run_is_deleted_in_the_folder_that_was_named(tmp_path, monkeypatch):
    """Not the one of the same name where runs are kept otherwise."""
    usual, elsewhere = (RunStore(tmp_path / name) for name in ("usual", "elsewhere"))
    kept = usual.create(RunConfig())
    shutil.copytree(kept.path, elsewhere.root / kept.id)
    monkeypatch.setenv("LORA_GPT_RUNS", str(usual.root))
    assert main(["delete", str(elsewhere.root / kept.id)]) == 0
    assert kept.path.is_dir() and not elsewhere.runs()


def test_what_a_narrow_encoding_lacks_is_escaped(tmp_path):
    """A report that is redirected on such a system is still written, a line at a time."""
    told = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "lora_gpt", "report", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, env=told, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"# LoRA on") and b"\\x" in done.stdout


@pytest.mark.parametrize("words", [["count"], ["count", "--json"]])
def test_whoever_reads_no_further_is_told_nothing(words, monkeypatch, capsys):
    """As `| head` does: no traceback, no sentence, and nothing left that cannot be written."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(words) == 141
    assert capsys.readouterr().err == ""


# --- interruption and failure --------------------------------------------------------------------

STARTED = Started(4, 4, 16, 0, 4, 0, 0, 1, 2, "cpu", 1)


def fake(monkeypatch, *events):
    """Training says `events`; an exception among them is raised in its place."""

    def train(config, checkpoint=None):
        for event in events:
            if isinstance(event, BaseException):
                raise event
            yield event

    monkeypatch.setattr(service_room, "train", train)


def step(number):
    return Step(number, 1, number + 1, 0.5, 0.5, 1e-3, 1.0, 9, 8, 0.1, 1.0, 1.0, 0.0)


def test_interrupting_gives_130(few, tmp_path, monkeypatch, capsys):
    """One line, no traceback, and a run that can be resumed."""
    fake(monkeypatch, STARTED, step(0), KeyboardInterrupt())
    assert main(["train", "--data", str(few), *TINY, "--runs", str(tmp_path)]) == 130
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "Epoch 1 | Batch 1 | Loss: 0.5000"
    assert told.err.splitlines() == ["lora_gpt: interrupted; --resume goes on with a training"]
    (left,) = RunStore(tmp_path).runs()
    assert left.status == "interrupted"


def test_an_interrupted_run_is_resumed(few, tmp_path, monkeypatch, capsys):
    """From the start where it has no checkpoint; the same folder then holds the end."""
    fake(monkeypatch, STARTED, step(0), KeyboardInterrupt())
    main(["train", "--data", str(few), *TINY, "--runs", str(tmp_path)])
    monkeypatch.undo()
    (left,) = RunStore(tmp_path).runs()
    assert main(["train", "--resume", left.id, "--runs", str(tmp_path), "--json"]) == 0
    found = last_json(capsys)
    assert (found["run"], found["steps"]) == (left.id, 4)
    assert left.status == "finished"


def test_a_training_that_fails_gives_1(few, tmp_path, monkeypatch, capsys):
    """What was asked for could be had, and went wrong: that is not bad input."""
    fake(monkeypatch, STARTED, step(0), ArithmeticError("learning_rate: the loss became nan"))
    assert main(["train", "--data", str(few), *TINY, "--runs", str(tmp_path), "--json"]) == 1
    assert refusal(capsys) == "lora_gpt: learning_rate: the loss became nan"
    fake(monkeypatch, STARTED, Failed("The memory did not suffice."))
    assert main(["train", "--data", str(few), *TINY, "--runs", str(tmp_path)]) == 1


# --- refusals ------------------------------------------------------------------------------------


def refusal(capsys):
    """The one line that was said, where nothing looks like a traceback or like a result."""
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lora_gpt"), told.err
    assert "Traceback" not in lines[0] and not re.search(r"\bError\b", lines[0])
    assert not any(line.startswith("{") for line in told.out.splitlines())
    return lines[0]


def refused(words, capsys):
    """What is said when `words` are refused: by the parser or by main, with exit code 2."""
    try:
        code = main(words)
    except SystemExit as left:
        code = left.code
    assert code == 2
    return refusal(capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "required: COMMAND"),
        ("tune", "invalid choice: 'tune'"),
        ("count --ranks 8", "unrecognized arguments: --ranks 8"),
        ("count --rank", "--rank: expected one argument"),
        ("count --rank 0", "rank: must be a whole number from 1 to 256; got 0"),
        ("count --rank 257 --model mini", "rank: must be a whole number from 1 to 256; got 257"),
        ("count --rank 2.5", "rank: must be a whole number"),
        ("count --rank eight", "got 'eight'"),
        ("count --rank nan", "rank: must be a whole number"),
        ("count --rank 1e999", "rank: must be a whole number"),
        ("count --alpha -1", "alpha: must be a number from 0.1 to 1024; got -1"),
        ("count --alpha inf", "alpha: must be a number"),
        ("count --model gpt3", "model: must be one of mini, distilgpt2"),
        ("count --targets W_query head", "targets: must be taken from W_query"),
        ("count --targets", "--targets: expected at least one argument"),
        ("tree --stage trained", "stage: must be one of base, lora, classifier; got 'trained'"),
        ("tree --model gpt3", "model: must be one of mini"),
        ("train --preset fast", "preset: must be one of default, lab"),
        ("train --epochs 0", "epochs: must be a whole number from 1 to 100; got 0"),
        ("train --method prompt", "method: must be one of lora, head, full"),
        ("train --device tpu", "device: must be one of auto, cpu"),
        ("train --schedule step", "schedule: must be one of"),
        ("train --seed -1", "seed: must be a whole number"),
        ("train --seed 2147483648", "seed: must be a whole number from 0 to 2147483647; got"),
        ("train --max-steps 0.5", "max_steps: must be a whole number of at least 0; got 0.5"),
        ("train --learning-rate 2", "learning_rate: must be a number from 0 to 1; got 2"),
        ("train --test-fraction 0.8 --validation-fraction 0.5", "validation_fraction: must leave"),
        ("train --max-tokens 257", "max_tokens: must be at most 256"),
        ("train --data nowhere.csv", "got 'nowhere.csv', which is not there"),
        ("train --data .", "got '.', which is no file"),
        ("train --data=", "data: must name a data set or a file"),
        ("train --data FEW --text-column body", "text_column: must be one of 1, 2"),
        ("train --data FEW --spam-label bad", "spam_label: must be one of ham, spam"),
        ("train --data FEW --batch-size 99", "batch_size: must be at most 42"),
        ("train --data BINARY", "binary.csv: must be a text file"),
        ("train --data EMPTY", "empty.csv: must hold messages, and is empty"),
        ("train --data FEW --weights nowhere/at/all", "Weights from: must be a folder"),
        ("train --resume abc", "run: must be the id of a run that is still there; got 'abc'"),
        ("train --resume ../abc", "at most 64 letters, digits, - and _; got '../abc'"),
        ("train --resume=", "run: must be the id of a run: at most 64 letters"),
        ("train --resume abc --rank 4", "rank: must not be given with --resume, which goes on"),
        ("train --resume abc --no-balance", "balance: must not be given with --resume"),
        ("train --resume abc --preset lab", "preset: must not be given with --resume"),
        ("train --init random --weights a", "weights: must not be given where the start is random"),
        ("train --preset random --weights a", "weights: must not be given where the start is"),
        ("train --data FEW --runs EMPTY", "run folder: "),
        ("evaluate --run abc", "run: must be the id of a run that is still there; got 'abc'"),
        ("evaluate --data nowhere.csv", "which is not there"),
        ("classify", "required: text"),
        ("classify --run abc hello", "run: must be the id of a run that is still there"),
        ("classify --run= hello", "digits, - and _; got ''"),
        ("classify --run head-only --strength 0.5 hi", "strength: must be 1 for a run without an"),
        ("report --run abc", "run: must be the id of a run that is still there"),
        ("pretrain bake --work WORK", "invalid choice: 'bake'"),
        ("pretrain filter", "required: --work"),
        ("pretrain filter --work WORK", "texts: must name the folder with the pretraining texts"),
        ("pretrain train --work WORK --tokens many", "tokens: must be a number"),
        ("pretrain train --work WORK --tokens inf", "tokens: must be a number"),
        ("pretrain train --work WORK --tokens nan", "tokens: must be a number"),
        ("pretrain encode --work WORK", "txt"),
        ("pretrain train --work WORK", "tokens.train.safetensors"),
        ("pretrain pack --work WORK", "checkpoint.prose.safetensors"),
        ("pretrain filter --work EMPTY", "empty.csv"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(words, says, few, tmp_path, monkeypatch, capsys):
    """Exit code 2; field, rule and value, and no traceback."""
    monkeypatch.setattr("lora_gpt.__main__.default_runs", lambda: tmp_path / "runs")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "empty.csv").write_bytes(b"")
    names = {"FEW": few, "WORK": tmp_path / "work"}
    names |= {"BINARY": tmp_path / "binary.csv", "EMPTY": tmp_path / "empty.csv"}
    given = [str(names.get(word, word)) for word in words.split()]
    if "FEW" in words:
        given += ["--no-keep-apart"]
    assert says in refused(given, capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["classify", ""], "text: must not be empty; got ''"),
        (["classify", " ", "\n"], "text: must not be empty"),
        (["classify", "a" * 20_001], "text: must be at most 20,000 characters long"),
        (["classify", "hi", "--strength", "loud"], "strength: must be a number from 0 to 10"),
        (["classify", "hi", "--strength", "nan"], "strength: must be a number from 0 to 10"),
        (["classify", "hi", "--strength", "-1"], "strength: must be a number from 0 to 10; got -1"),
        (["evaluate", "--data", "nowhere"], "which is not there"),
        (["train", "--resume", "RUN"], "run: must not be finished to be resumed; got"),
    ],
)
def test_bad_input_to_a_run_is_refused(words, says, trained, run, capsys):
    """What is asked of a run that is there."""
    given = [run if word == "RUN" else word for word in words]
    if words[0] != "train":
        given += ["--run", run]
    assert says in refused([*given, "--runs", str(trained[0])], capsys)


def test_a_refused_training_leaves_no_folder(few, tmp_path, capsys):
    """Bad data, batch sizes and weights are found before a run is made."""
    here = ["--data", str(few), "--no-keep-apart"]
    for more in (["--data", "nowhere"], [*here, "--batch-size", "99"], [*here, "--weights", "/no"]):
        refused(["train", *more, "--runs", str(tmp_path / "runs")], capsys)
    assert not (tmp_path / "runs").exists()


def test_gpt2_without_a_network(few, tmp_path, monkeypatch, capsys):
    """First its tokenizer, then its weights: both say what to do."""

    def unreachable(name):
        raise OSError("no route to the host")

    tokenizer.load.cache_clear()
    words = ["train", "--model", "gpt2", "--data", str(few), "--no-keep-apart"]
    with monkeypatch.context() as patch:
        patch.setattr("tiktoken.get_encoding", unreachable)
        said = refused([*words, "--runs", str(tmp_path)], capsys)
    assert "tokenizer of gpt2 is not on this machine" in said and "TIKTOKEN_CACHE_DIR" in said
    fetching._faults.cache_clear()  # as a minute later
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: tokenizer.load("mini"))
    monkeypatch.setattr("lora_gpt.core.hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("lora_gpt.core.hub.hf_hub_download", _offline)
    said = refused([*words, "--runs", str(tmp_path)], capsys)
    assert "openai-community/gpt2" in said
    tokenizer.load.cache_clear()


def _offline(*_, **__):
    from huggingface_hub.errors import OfflineModeIsEnabled

    raise OfflineModeIsEnabled("HF_HUB_OFFLINE=1")


# --- help ----------------------------------------------------------------------------------------


def commands():
    (found,) = [
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return found.choices


def test_every_option_of_every_command_has_help():
    """And every command says what it is for, also when asked for help as a whole."""
    assert [*commands()] == [
        *("tree", "count", "train", "evaluate", "classify", "runs", "delete", "report", "pretrain"),
    ]
    for name, parser in commands().items():
        assert parser.description, name
        for action in parser._actions:
            assert action.help and len(action.help) > 5, (name, action.dest)
        assert name in parser.format_help()


@pytest.mark.parametrize("name", ["tree", "count", "train", "evaluate"])
def test_the_defaults_that_are_shown_hold(name, capsys):
    """Of every knob but those that are empty; a model is named where none is given."""
    known = RunConfig().flat() | ({"model": "gpt2"} if name in ("tree", "count") else {})
    for action in commands()[name]._actions:
        if action.dest in known and known[action.dest] != "":
            shown = re.search(r"\[([^]]*)\]$", action.help.replace("%%", "%"))[1]
            value = known[action.dest]
            if isinstance(value, bool):
                assert shown == ("yes" if value else "no")
            elif isinstance(value, tuple):
                assert tuple(shown.split()) == value
            else:
                assert type(value)(shown) == value
    if name == "count":
        main([name, "--json"])
        assert last_json(capsys)["model"] == "gpt2"


def test_every_command_takes_json():
    for name, parser in commands().items():
        assert "--json" in parser.format_help(), name


def test_help_and_version(capsys):
    """Exit code 0 and words on standard output."""
    for words in (["--help"], ["train", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
        told = capsys.readouterr()
        assert told.out and not told.err
