"""lora_gpt: see what LoRA does to GPT-2. The rooms of the house are listed in README.md."""

import os

__version__ = "1.0.0"

# OpenMP reads this once, when torch is imported. By default a thread that waits for the others of
# its team spins for milliseconds, on the very processor that the other one needs when the page, a
# second training or a browser has work there too: everything then takes ten times as long and more.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
