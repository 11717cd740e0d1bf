"""lora_gpt: see what LoRA does to GPT-2. The rooms of the house are listed in README.md."""

__version__ = "1.0.0"
