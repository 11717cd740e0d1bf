"""What pretraining is worth: the bundled model against the same model from random weights.

    python benchmarks/pretraining.py --seeds 10

Tasks, each over seeds, beside the linear baseline on the same splits: the labs' protocol on the SMS
Spam Collection, one epoch; the same with three epochs at twice the learning rate; the default
preset on it, balanced and with duplicates kept apart; the default preset on the bundled messages.
Prints a line a seed, then the table of the README and what a training took, then one line of JSON.
Nothing is chosen here: recipes were chosen on validation parts of other seeds, which split the same
messages another way (benchmarks/README.md says what that means).
"""

import argparse
import json
import statistics
from dataclasses import asdict

from accuracy import Seeds, over_seeds

from lora_gpt.config import INITS, preset

TASKS = {
    "lab": preset("lab").changed(data="sms-spam"),
    "lab-long": preset("lab").changed(data="sms-spam", epochs=3, learning_rate=2e-3),
    "apart": preset("default").changed(data="sms-spam"),
    "bundled": preset("default"),
}
NAMES = {
    "lab": "SMS, labs' protocol",
    "lab-long": "the same, three epochs at rate 0.002",
    "apart": "SMS, duplicates kept apart",
    "bundled": "bundled messages",
}
HEAD = """| messages | start | test accuracy | deviation | linear model | above it | training |
| --- | --- | ---: | ---: | ---: | ---: | ---: |"""


def line(task: str, init: str, found: Seeds) -> str:
    """A row of the table; the time is the median of the seeds."""
    linear = statistics.mean(found.baseline)
    above = sum(a > b for a, b in zip(found.ours, found.baseline, strict=True))
    return (
        f"| {task} | {init} | {found.mean:.2f}% | {found.deviation:.2f} | {linear:.2f}% |"
        f" {above} of {len(found.ours)} seeds | {statistics.median(found.seconds):.1f} s |"
    )


def main() -> None:
    """Measure all tasks from all starts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--init", choices=INITS, nargs="*", default=[*INITS])
    parser.add_argument("--tasks", choices=TASKS, nargs="*", default=[*TASKS])
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results: dict[tuple[str, str], Seeds] = {}
    for task in options.tasks:
        for init in options.init:
            print(f"{NAMES[task]}, {init}", flush=True)
            results[NAMES[task], init] = over_seeds(TASKS[task].changed(init=init), seeds)
    print(HEAD)
    for (task, init), found in results.items():
        print(line(task, init, found))
    print(json.dumps([{"task": t, "init": i} | asdict(found) for (t, i), found in results.items()]))


if __name__ == "__main__":
    main()
