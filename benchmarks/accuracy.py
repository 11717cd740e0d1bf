"""Accuracy over seeds, beside the linear baseline on the same splits.

    python benchmarks/accuracy.py --preset lab --data sms-spam --seeds 5 --set epochs=1

Each seed is a split, an order and a start of its own. With `--part validation` the test part is
not looked at: recipes are chosen that way. Prints a line a seed, then mean and standard deviation,
then one line of JSON.
"""

import argparse
import ast
import json
import platform
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lora_gpt.config import PRESETS, RunConfig, preset
from lora_gpt.core.training import train
from lora_gpt.events import Finished


def measured(config: RunConfig) -> Finished:
    """The end of one run."""
    return next(event for event in train(config) if isinstance(event, Finished))


def main() -> None:
    """Run the seeds and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="lab")
    parser.add_argument("--data", default="sms-spam")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE")
    options = parser.parse_args()
    changes = {}
    for each in options.set:
        name, _, value = each.partition("=")
        try:
            changes[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[name] = value
    config = preset(options.preset).changed(data=options.data, **changes)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch")
    print(f"{options.preset} {options.data} {changes or ''} on {options.part}")
    ours, theirs, seconds = [], [], []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        end = measured(config.changed(seed=seed))
        part = end.test if options.part == "test" else end.validation
        if part is None:
            raise SystemExit("this preset has no validation part: set validation_fraction")
        ours.append(100 * part["accuracy"])
        theirs.append(100 * end.baseline["accuracy"])
        seconds.append(end.train_seconds)
        print(
            f"seed {seed}: {ours[-1]:.2f}%, loss {part['loss']:.4f}"
            + (f", baseline {theirs[-1]:.2f}%" if options.part == "test" else "")
            + f", {seconds[-1]:.1f} s",
            flush=True,
        )
    spread = statistics.stdev(ours) if len(ours) > 1 else 0.0
    print(f"mean {statistics.mean(ours):.2f}%, standard deviation {spread:.2f}", end="")
    print(f", baseline {statistics.mean(theirs):.2f}%" if options.part == "test" else "")
    print(
        json.dumps(
            {
                "preset": options.preset,
                "data": options.data,
                "part": options.part,
                "changes": changes,
                "accuracy": ours,
                "mean": statistics.mean(ours),
                "deviation": spread,
                "baseline": theirs if options.part == "test" else None,
                "median_train_seconds": statistics.median(seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
