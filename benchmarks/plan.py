"""What the plan says before a run, and what the run then took: time of the steps, most memory.

    python benchmarks/plan.py --weights FOLDER

FOLDER holds GPT-2 124M (model.safetensors and config.json); without it, only the bundled model is
run. Every run has a process of its own, takes the first 12 steps of the default preset and is then
measured as every run is, on all of its messages.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOUSE))

from lora_gpt.config import RunConfig  # noqa: E402
from lora_gpt.core.cost import MB  # noqa: E402
from lora_gpt.service import Service  # noqa: E402
from lora_gpt.words import size  # noqa: E402

NAMES = ("method", "precision", "batch_size")
CASES = [
    dict(zip(NAMES, case, strict=True))
    for case in (
        ("lora", "float32", 8),
        ("lora", "float32", 32),
        ("lora", "bfloat16", 8),
        ("head", "float32", 8),
        ("full", "float32", 8),
    )
]
SHORT = {"max_steps": 12, "validate_every": 0}


def took(changes: dict[str, object], runs: Path) -> dict[str, float]:
    """What the command line says of a run of its own."""
    words = [sys.executable, "-m", "lora_gpt", "train", "--json", "--runs", str(runs)]
    for name, value in changes.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(words, cwd=HOUSE, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", help="Folder with GPT-2 124M.")
    weights = parser.parse_args().weights
    models: list[dict[str, object]] = [{"model": "mini"}]
    models += [{"model": "gpt2", "weights": weights}] if weights else []
    print(f"{'run':<34}{'seconds':>9}{'plan':>7}{'ratio':>7}{'memory':>9}{'plan':>9}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder))
        for model in models:
            for case in CASES:
                changes = model | case | SHORT
                plan = service.plan(RunConfig().changed(**changes))
                found = took(changes, Path(folder))
                name = " ".join(map(str, (model["model"], *case.values())))
                times, sizes = found["train_seconds"], found["peak_memory_mb"]
                print(
                    f"{name:<34}{times:>9.1f}{plan.seconds:>7.1f}{plan.seconds / times:>7.2f}"
                    f"{size(MB * sizes):>9}{size(MB * plan.memory_mb):>9}"
                    f"{plan.memory_mb / sizes:>7.2f}",
                    flush=True,
                )
        service.close()


if __name__ == "__main__":
    main()
