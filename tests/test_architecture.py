"""Reads the imports of every module and holds them to the plan of the house."""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]

FLOORS = (
    ("app",),
    ("ui",),
    ("__main__",),
    ("service", "plots"),
    ("classifiers",),
    ("core", "store", "jobs", "worker", "report"),
    ("config", "events", "words"),
    ("knobs", "cache", "interrupts"),
    ("__init__",),
)
"""From the top to the ground. A room may use its own floor and those below, never one above."""

FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
ONLY = {
    "core": {"core", "config", "events"},
    "plots": {"plots", "config", "events", "words"},
    "config": {"config", "knobs"},
    "knobs": {"knobs"},
    "cache": {"cache"},
    "interrupts": {"interrupts"},
    "events": {"events"},
}
"""Rooms that may use nothing but these."""
ALONE = {"plots": {"ui", "plots"}}
"""Rooms that nobody but these may use."""
HOMES = {
    "gradio": {"ui", "app"},
    "torch": {"core"},
    "safetensors": {"core"},
    "transformers": {"core"},
    "peft": set(),
}
"""Libraries that may be imported in these rooms alone."""


def sources(house: Path) -> dict[str, str]:
    """Text of every module of the house by its dotted name."""
    files = [house / "app.py", *(house / "lora_gpt").rglob("*.py")]
    return {dotted(path.relative_to(house)): path.read_text("utf-8") for path in files}


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room in which a module stands: `lora_gpt.core.lora` in core, `app` in app."""
    house, _, inside = module.partition(".")
    return house if house != "lora_gpt" else inside.partition(".")[0] or "__init__"


def imports(module: str, text: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Dotted names of all that a module imports, also inside functions."""
    is_package = any(each.startswith(f"{module}.") for each in modules)
    here = module.split(".") + ["__init__"] * is_package
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from lora_gpt.core import lora` names a module, `from x import y` something in one.
            source = node.module or ""
            if node.level:
                parts = here[: -node.level]
                source = ".".join([*parts, source] if source else parts)
            inner = [f"{source}.{alias.name}" for alias in node.names]
            yield from {each if each in modules else source for each in inner}


def faults(modules: Mapping[str, str]) -> list[str]:
    """Every import that the plan forbids, as a sentence."""
    found = []
    for module, text in modules.items():
        room = room_of(module)
        if room not in FLOOR:
            found.append(f"{module}: {room} is no room of the plan")
            continue
        for name in sorted(set(imports(module, text, modules))):
            found += [f"{module}: {rule} ({name})" for rule in broken_rules(room, name)]
    return found


def broken_rules(room: str, name: str) -> Iterator[str]:
    library = name.partition(".")[0]
    if room not in HOMES.get(library, {room}):
        yield f"{room} must not know {library}"
    if library not in ("lora_gpt", "app"):
        return
    used = room_of(name)
    if used not in FLOOR:
        yield f"{used} is no room of the plan"
    elif FLOOR[used] < FLOOR[room]:
        yield f"an arrow runs back up from {room} to {used}"
    elif used not in ONLY.get(room, {used}) and used != "__init__":
        yield f"{room} must not use {used}"
    elif room not in ALONE.get(used, {room}):
        yield f"{used} is not for {room}"


def order(modules: Mapping[str, str]) -> list[str]:
    """The modules, each after all that it imports. Raises CycleError where that cannot be."""
    graph = {
        module: {name for name in imports(module, text, modules) if name in modules} - {module}
        for module, text in modules.items()
    }
    return list(graphlib.TopologicalSorter(graph).static_order())


# --- the house -----------------------------------------------------------------------------------


def test_the_house_keeps_to_its_plan():
    """No arrow runs back up, gradio lives in ui, torch in core."""
    assert faults(sources(HOUSE)) == []


def test_no_two_modules_import_each_other():
    """Every module can be read, and loaded, after those that it uses."""
    assert "lora_gpt.config" in order(sources(HOUSE))


def test_every_room_is_looked_at():
    """The check reads what is there: it is not green because it found nothing."""
    modules = sources(HOUSE)
    rooms = {room_of(module) for module in modules}
    assert rooms >= {"core", "store", "jobs", "worker", "config", "events", "ui"}
    used = set(imports("lora_gpt.core.lora", modules["lora_gpt.core.lora"], modules))
    assert {"torch", "lora_gpt.config", "lora_gpt.core.model"} <= used


# --- the check itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("lora_gpt.config", "import lora_gpt.service", "an arrow runs back up from config"),
        ("lora_gpt.events", "from lora_gpt.config import RunConfig", "events must not use config"),
        ("lora_gpt.core.data", "from lora_gpt import store", "core must not use store"),
        ("lora_gpt.core.data", "from ..store import Run", "core must not use store"),
        ("lora_gpt.core.data", "from ..ui import build", "runs back up from core to ui"),
        ("lora_gpt.core", "from ..store import Run", "core must not use store"),
        ("lora_gpt.store", "from lora_gpt.service import Service", "back up from store to service"),
        ("lora_gpt.service", "from lora_gpt.ui.build import build", "back up from service to ui"),
        ("lora_gpt.ui.build", "import app", "an arrow runs back up from ui to app"),
        ("lora_gpt.__main__", "import lora_gpt.ui", "an arrow runs back up from __main__ to ui"),
        ("lora_gpt.service", "import gradio as gr", "service must not know gradio"),
        ("lora_gpt.plots", "from gradio import Blocks", "plots must not know gradio"),
        ("lora_gpt.plots", "from lora_gpt import core", "plots must not use core"),
        (
            "lora_gpt.report",
            "from lora_gpt.plots import curve",
            "runs back up from report to plots",
        ),
        ("lora_gpt.service", "import lora_gpt.plots", "plots is not for service"),
        ("lora_gpt.ui.tree", "import torch", "ui must not know torch"),
        ("lora_gpt.worker", "def f():\n    import torch", "worker must not know torch"),
        ("lora_gpt.jobs", "from torch import nn", "jobs must not know torch"),
        ("lora_gpt.store", "from safetensors.torch import save", "store must not know safetensors"),
        ("app", "import transformers", "app must not know transformers"),
        ("lora_gpt.utils", "", "utils is no room of the plan"),
        ("lora_gpt.core.data", "import lora_gpt.utils", "utils is no room of the plan"),
    ],
)
def test_a_forbidden_import_is_found(module, text, fault):
    """The check can fail: each rule on a source that breaks it."""
    rooms = ("store", "core", "core.data", "ui", "ui.build")
    known = {f"lora_gpt.{room}": "" for room in rooms}
    (found,) = faults(known | {module: text})
    assert found.startswith(f"{module}: ") and fault in found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("app", "from lora_gpt.ui.build import build\nimport gradio"),
        ("lora_gpt.ui.train_tab", "import gradio\nfrom lora_gpt import plots, service, config"),
        ("lora_gpt.service", "from lora_gpt.core.lora import merge\nimport lora_gpt.jobs"),
        ("lora_gpt.jobs", "from lora_gpt.store import Run\nfrom .worker import main"),
        ("lora_gpt.core.lora", "import torch\nfrom .model import GPTModel\nfrom ..config import x"),
        ("lora_gpt.__main__", "from lora_gpt import __version__, service, report"),
        ("lora_gpt.config", "'import torch'  # import gradio"),
    ],
)
def test_what_the_plan_allows_is_allowed(module, text):
    rooms = ("plots", "service", "config", "report", "store", "worker", "core.model")
    assert faults({f"lora_gpt.{room}": "" for room in rooms} | {module: text}) == []


def test_a_circle_is_found():
    """Also on one floor, where no arrow runs up."""
    circle = {"lora_gpt.store": "import lora_gpt.jobs", "lora_gpt.jobs": "from . import store"}
    with pytest.raises(graphlib.CycleError):
        order(circle)
