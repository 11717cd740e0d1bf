"""The command line: `python -m lora_gpt`. Thin over `service`: words in, words or JSON out.

Exit code 0 when it worked, 2 with one sentence for bad input, 1 when a training failed, 130 when it
was interrupted, 141 when nobody reads on, as behind `| head`. With `--json` the last line of the
output is JSON: an object, or a list of them.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from lora_gpt import __version__
from lora_gpt.config import (
    DEVICES,
    GROUPS,
    PRESET_LABELS,
    PRETRAINING,
    SHOWN_MODEL,
    BadValue,
    Knob,
    LoRAConfig,
    RunConfig,
    compared,
    knobs,
    preset,
)
from lora_gpt.events import Event, Failed, Finished, Progress, Started, Step, Stopped, Validation
from lora_gpt.interrupts import INTERRUPTED, starting
from lora_gpt.store import RunStore
from lora_gpt.words import percent_with_interval

with starting():  # these import torch
    from lora_gpt.core import structure
    from lora_gpt.report import beside_baseline
    from lora_gpt.service import MOST_STRENGTH, SAMPLE, SAMPLE_RUNS, Service, default_runs

UNREAD = 141
"""Exit code where nobody reads on: 128 and the number of that signal, as shells have it."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. '{self.prog} --help' tells what it takes.\n")


# --- arguments from knobs ------------------------------------------------------------------------


def add_knob(parser: argparse.ArgumentParser, name: str, about: Knob, default: Any) -> None:
    """One option for one knob; an option that is not given leaves the preset's value."""
    flag = "--" + name.replace("_", "-")
    words = f"{about.help} [{_shown(default)}]" if default != "" else about.help
    more: dict[str, Any] = {"help": words.replace("%", "%%"), "default": argparse.SUPPRESS}
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
    elif isinstance(default, tuple):
        parser.add_argument(flag, nargs="+", metavar="LAYER", **more)
    elif isinstance(default, str):
        metavar = "{" + ",".join(about.choices) + "}" if about.choices else "TEXT"
        parser.add_argument(flag, metavar=metavar, **more)
    else:
        # Read here, checked by the config: one sentence for every wrong number.
        parser.add_argument(flag, metavar="N", type=_number, **more)


def _shown(default: Any) -> str:
    """A default as it would be typed; yes or no for an option that is a switch."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return " ".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def add_group(parser: argparse.ArgumentParser, group: type, *names: str) -> None:
    """Options for the knobs of a group, or for those named."""
    for name, about in knobs(group).items():
        if not names or name in names:
            add_knob(parser, name, about, getattr(group, name))


def add_structure(parser: argparse.ArgumentParser) -> None:
    """Options for what can be known of a model without its weights."""
    about = knobs(RunConfig)
    add_knob(parser, "model", about["model"], SHOWN_MODEL)
    add_knob(parser, "shape", about["shape"], RunConfig.shape)
    add_group(parser, LoRAConfig)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The knobs that stand on the command line."""
    known = RunConfig().flat()
    return {name: value for name, value in vars(arguments).items() if name in known}


def build_parser() -> Parser:
    parser = Parser("lora_gpt", description="See what LoRA does to GPT-2.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> Parser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--json", action="store_true", help="End with one line of JSON.")
        return added

    tree = command("tree", "Print the module tree at a stage, with its counts.")
    add_structure(tree)
    tree.add_argument(
        "--stage",
        default="base",
        metavar="{" + ",".join(structure.STAGES) + "}",
        help="How far the model has been changed. [base]",
    )
    tree.add_argument("--torch", action="store_true", help="Print it as PyTorch would.")

    count = command("count", "Count trainable and all parameters at each stage.")
    add_structure(count)

    train = command("train", "Train a classifier and test it.")
    names = "; ".join(f"{name}: {label}" for name, label in PRESET_LABELS.items())
    train.add_argument(
        "--preset",
        default="default",
        help=f"Where to start from. {names}. Each option that is left out has its value; the"
        " values in brackets are those of 'default'. [default]",
    )
    add_group(train, RunConfig)
    for group in GROUPS.values():
        add_group(train, group)
    train.add_argument(
        "--resume",
        metavar="RUN",
        help="Go on with a stopped run, as it was begun: nothing of it can be changed.",
    )
    _add_runs(train)

    evaluate = command("evaluate", "Measure a run's classifier on a file of labelled messages.")
    _add_run(evaluate)
    add_group(evaluate, GROUPS["data"], "data", "text_column", "label_column", "spam_label")

    classify = command("classify", "Say of each message whether it is spam.")
    _add_run(classify)
    classify.add_argument("text", nargs="+", help="A message; put it in quotes.")
    classify.add_argument(
        "--strength",
        type=_number,
        default=1.0,
        help=f"Of the adapter: 0 is the base, 1 as trained, {MOST_STRENGTH} at most. [1]",
    )

    runs = command("runs", "List the runs, newest first.")
    _add_runs(runs)

    delete = command("delete", "Delete a run, its adapter and its log, for good.")
    delete.add_argument("run", help="The run's id or folder.")
    _add_runs(delete)

    report = command("report", "Print the lab report of a run, in Markdown.")
    _add_run(report)

    pretrain = command("pretrain", "Make the bundled base model, one step after the other.")
    pretrain.add_argument(
        "step",
        choices=("filter", "vocabulary", "encode", "train", "pack", "samples"),
        help="filter the text, learn the vocabulary, encode, train, pack into assets, and train"
        " the sample adapters",
    )
    pretrain.add_argument("--work", type=Path, required=True, help="Folder for what lies between.")
    pretrain.add_argument("--texts", type=Path, help="Folder with the pretraining texts (filter).")
    pretrain.add_argument("--tokens", type=_number, default=24e6, help="To train on. [24e6]")
    pretrain.add_argument(
        "--stage",
        choices=PRETRAINING,
        default="prose",
        help="What is trained (train), each from where the one before ended: "
        + ", ".join(f"{name} ({what})" for name, what in PRETRAINING.items())
        + ". [prose]",
    )
    pretrain.add_argument(
        "--device", choices=DEVICES, default="auto", help="Where it is trained (train). [auto]"
    )
    pretrain.add_argument("--compiled", action="store_true", help="Train faster; needs a compiler.")
    return parser


def _add_runs(parser: Parser) -> None:
    parser.add_argument(
        "--runs", type=Path, help="Folder of the runs. [$LORA_GPT_RUNS, else your data folder]"
    )


def _add_run(parser: Parser) -> None:
    _add_runs(parser)
    parser.add_argument(
        "--run", default=SAMPLE, help="A run's id or folder; 'sample' is a bundled one. [sample]"
    )


# --- the commands --------------------------------------------------------------------------------


def lora_from(arguments: argparse.Namespace) -> LoRAConfig:
    anyone = RunConfig(init="random")  # no weights are read, so any shape will do
    return anyone.changed(**given(arguments)).lora


def run_tree(arguments: argparse.Namespace) -> dict[str, Any]:
    model, shape = getattr(arguments, "model", SHOWN_MODEL), getattr(arguments, "shape", "")
    root = structure.tree(model, arguments.stage, lora_from(arguments), shape=shape)
    print(structure.printed(root) if arguments.torch else structure.outline(root))
    return {
        "model": model,
        "stage": arguments.stage,
        "trainable": root.trainable,
        "total": root.parameters,
    }


def run_count(arguments: argparse.Namespace) -> dict[str, Any]:
    model, lora = getattr(arguments, "model", SHOWN_MODEL), lora_from(arguments)
    stages = structure.counts(model, lora, shape=getattr(arguments, "shape", ""))
    print(f"{'stage':<12}{'trainable':>15}{'total':>15}{'fraction':>10}")
    for stage in stages:
        share = f"{100 * stage.fraction:.2f}%"
        print(f"{stage.stage:<12}{stage.trainable:>15,}{stage.total:>15,}{share:>10}")
    return {
        "model": model,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "targets": list(lora.targets),
        "stages": [dataclasses.asdict(stage) | {"fraction": stage.fraction} for stage in stages],
    }


def run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    service = _service(arguments)
    if arguments.resume is not None:
        _refuse_more(arguments)
        return _trained(service, *service.resume_here(_run_name(service, arguments.resume)))
    config = preset(arguments.preset).changed(**given(arguments))
    if config.init == "random" and config.weights:
        rule = "must not be given where the start is random, which reads none"
        raise BadValue("weights", rule, config.weights)
    first, *others = compared(arguments.preset, config)
    found = _trained(service, *service.run_here(first))
    for other in others:
        beside = _trained(service, *service.run_here(other))
        found["beside"] = {"run": beside["run"], "test_accuracy": beside["test_accuracy"]}
    return found


def _refuse_more(arguments: argparse.Namespace) -> None:
    """A run that goes on keeps the knobs that it was begun with: others would be ignored."""
    more = given(arguments)
    if arguments.preset != "default":
        more = {"preset": arguments.preset} | more
    for name, value in more.items():
        rule = "must not be given with --resume, which goes on with the run as it was begun"
        raise BadValue(name, rule, value)


def _trained(service: Service, run: str, events: Iterator[Event]) -> dict[str, Any]:
    """Watch a training to its end; returns what it reached."""
    print(f"Run {run} in {service.store.root / run}")
    started, finished = _watch(events)
    test = finished.test
    print(f"Test accuracy {percent_with_interval(test)}")
    print(f"Linear baseline {percent_with_interval(finished.baseline)}")
    print(beside_baseline(finished))
    return {
        "run": run,
        "seconds": round(finished.seconds, 3),
        "train_seconds": round(finished.train_seconds, 3),
        "steps": finished.steps,
        "train_size": started.train_size,
        "validation_size": started.validation_size,
        "test_size": started.test_size,
        "train_accuracy": finished.train_accuracy,
        "test_accuracy": test["accuracy"],
        "test_interval": list(test["interval"]),
        "baseline_accuracy": finished.baseline["accuracy"],
        "leaked_test_messages": started.leaked_test_messages,
        "near_test_messages": started.near_test_messages,
        "trainable": started.trainable,
        "total": started.total,
        "peak_memory_mb": finished.peak_memory_mb,
        "device": started.device,
        "threads": started.threads,
        "test": {name: value for name, value in test.items() if name != "misclassified"},
    }


class TrainingFailed(Exception):
    """The run ended in a fault, already recorded in its folder."""


def _watch(events: Iterator[Event]) -> tuple[Started, Finished]:
    """Print what happens in the labs' words and return the run's first and last facts."""
    started: Started | None = None
    finished: Finished | None = None
    bar: tqdm | None = None
    for event in events:
        if isinstance(event, Progress):
            if sys.stderr.isatty():
                print(f"{event.stage} ...", file=sys.stderr)
        elif isinstance(event, Started):
            started = event
            bar = tqdm(
                total=event.steps,
                initial=event.first_step,
                unit="step",
                mininterval=0.5,
                disable=not sys.stderr.isatty(),
            )
        elif isinstance(event, Step):
            if bar is not None:
                bar.update()
            if event.batch % 10 == 0 or event.step == 0:
                tqdm.write(f"Epoch {event.epoch} | Batch {event.batch} | Loss: {event.loss:.4f}")
        elif isinstance(event, Validation):
            tqdm.write(
                f"Step {event.step} | Validation loss: {event.loss:.4f}"
                f" | Validation accuracy: {100 * event.accuracy:.2f}%"
            )
        elif isinstance(event, Failed):
            if started is None:  # nothing was trained yet: what was asked for cannot be had
                raise ValueError(event.message)
            raise TrainingFailed(event.message)
        elif isinstance(event, Stopped):
            raise TrainingFailed(f"stopped after {event.step} steps; --resume goes on")
        elif isinstance(event, Finished):
            finished = event
    if bar is not None:
        bar.close()
    assert started is not None and finished is not None
    return started, finished


def run_evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    service = _service(arguments)
    config = RunConfig().changed(**given(arguments))
    run = _run_name(service, arguments.run)
    metrics = service.evaluate(run, config).to_json()
    print(f"Accuracy {percent_with_interval(metrics)}")
    return {"run": run, "data": config.data.data} | metrics


def run_classify(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    service = _service(arguments)
    run = _run_name(service, arguments.run)
    method = service.find(run).config.training.method
    if method != "lora" and arguments.strength != 1:
        rule = f"must be 1 for a run without an adapter (its method is {method})"
        raise BadValue("strength", rule, arguments.strength)
    verdicts = service.classify(run, arguments.text, arguments.strength)
    for each in verdicts:
        print(f"{each.label:<5}{100 * each.p_spam:6.1f}%  {each.text}")
    return [{"text": v.text, "label": v.label, "p_spam": v.p_spam} for v in verdicts]


def run_runs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    service = _service(arguments)
    found = []
    for each in service.runs():
        accuracy = each.finished.test["accuracy"] if each.finished else None
        status = "broken" if each.problem else each.status
        found.append(_row(each.id, status, each.problem or each.label, accuracy))
    found += [_row(name, "broken", problem) for name, problem in service.store.broken().items()]
    if not found:
        print("No run yet: 'python -m lora_gpt train' makes one.")
    return found


def _row(run: str, status: str, label: str, accuracy: float | None = None) -> dict[str, Any]:
    """Print one line of the list of runs; `label` says what is wrong with a broken one."""
    shown = f"{100 * accuracy:6.2f}%" if accuracy is not None else "      -"
    print(f"{run:<20}{status:<13}{shown}  {label}")
    return {"run": run, "status": status, "label": label, "test_accuracy": accuracy}


def run_delete(arguments: argparse.Namespace) -> dict[str, Any]:
    service = _service(arguments)
    # Whoever has the command line has the folder: there is no owner to ask for.
    name = _run_name(service, arguments.run)  # first: a folder brings its own store
    run = service.store.open(name)
    run.delete()
    print(f"Run {run.id} is deleted.")
    return {"run": run.id}


def run_report(arguments: argparse.Namespace) -> dict[str, Any]:
    service = _service(arguments)
    text = service.report(_run_name(service, arguments.run))
    print(text)
    return {"run": arguments.run, "report": text}


def run_pretrain(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.step == "samples":
        _watch(Service(arguments.work / "runs").make_samples())
        return {"samples": list(SAMPLE_RUNS)}
    from lora_gpt.core.pretrain import steps  # its libraries are slow to import

    return steps.run(
        arguments.step,
        arguments.work,
        arguments.texts,
        arguments.tokens,
        arguments.stage,
        arguments.compiled,
        arguments.device,
    )


def _service(arguments: argparse.Namespace) -> Service:
    return Service(arguments.runs or default_runs())


def _run_name(service: Service, name: str) -> str:
    """A run's id, also from the path of its folder."""
    folder = Path(name)
    if folder.name != name and folder.is_dir():
        folder = folder.resolve()  # '.' has a name of its own
        service.store = service.samples = RunStore(folder.parent)
        return folder.name
    return name


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file that a training is piped into grows; what a narrow encoding lacks is escaped.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        arguments = build_parser().parse_args(words)
        found = globals()[f"run_{arguments.command}"](arguments)
        if arguments.json:
            print(json.dumps(found))
    except BrokenPipeError:
        # Whoever read it has seen enough, as `head` does. What is still held goes nowhere, or the
        # interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except TrainingFailed as failure:
        print(f"lora_gpt: {failure}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as refusal:
        print(f"lora_gpt: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lora_gpt: interrupted; --resume goes on with a training", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
