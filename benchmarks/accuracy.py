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
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lora_gpt  # noqa: F401, before torch: it says how threads wait

# isort: split
import torch

from lora_gpt.config import PRESETS, RunConfig, preset
from lora_gpt.core.training import train
from lora_gpt.events import Finished


def measured(config: RunConfig) -> Finished:
    """The end of one run."""
    return next(event for event in train(config) if isinstance(event, Finished))


@dataclass(frozen=True)
class Seeds:
    """What was measured over seeds; accuracies in percent."""

    ours: list[float]
    baseline: list[float]
    seconds: list[float]
    """Of training alone."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.ours)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.ours) if len(self.ours) > 1 else 0.0


def over_seeds(config: RunConfig, seeds: range, part: str = "test") -> Seeds:
    """Train with each seed and say what it reached."""
    found = Seeds([], [], [])
    for seed in seeds:
        end = measured(config.changed(seed=seed))
        seen = end.test if part == "test" else end.validation
        if seen is None:
            raise SystemExit("this preset has no validation part: set validation_fraction")
        found.ours.append(100 * seen["accuracy"])
        found.baseline.append(100 * end.baseline["accuracy"])
        found.seconds.append(end.train_seconds)
        print(
            f"seed {seed}: {found.ours[-1]:.2f}%, loss {seen['loss']:.4f}"
            + (f", baseline {found.baseline[-1]:.2f}%" if part == "test" else "")
            + f", {end.train_seconds:.1f} s",
            flush=True,
        )
    return found


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
    first = options.first_seed
    found = over_seeds(config, range(first, first + options.seeds), options.part)
    on_test = options.part == "test"
    print(f"mean {found.mean:.2f}%, standard deviation {found.deviation:.2f}", end="")
    print(f", baseline {statistics.mean(found.baseline):.2f}%" if on_test else "")
    print(
        json.dumps(
            {
                "preset": options.preset,
                "data": options.data,
                "part": options.part,
                "changes": changes,
                "accuracy": found.ours,
                "mean": found.mean,
                "deviation": found.deviation,
                "baseline": found.baseline if on_test else None,
                "median_train_seconds": statistics.median(found.seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
