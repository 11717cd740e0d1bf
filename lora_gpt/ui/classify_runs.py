"""Which trained classifiers a visitor may choose from: the bundled ones and their own."""

from lora_gpt.service import RunSummary, Service
from lora_gpt.words import percent

NO_RUN = "There is no trained classifier here yet. Train one in the tab Train; it is then listed."


def choices(service: Service, owner: str, looked_at: str) -> list[tuple[str, str]]:
    """Label and id of every finished run that is bundled, is `owner`'s, or is `looked_at`."""
    own = service.runs(owner) if owner else []
    known = {each.id for each in own}
    linked = _linked(service, looked_at) if looked_at not in known else []
    named = [("sample", each) for each in service.sample_runs()]
    named += [("yours", each) for each in own] + [("linked", each) for each in linked]
    return [(_label(whose, each), each.id) for whose, each in named if each.finished]


def _linked(service: Service, run_id: str) -> list[RunSummary]:
    """A run that was opened by its address, where it is still there."""
    try:
        return [service.summary(run_id)] if run_id else []
    except (ValueError, OSError):
        return []


def _label(whose: str, run: RunSummary) -> str:
    """'sample, 97.3% in test: mini, LoRA r 8, bundled, seed 42'."""
    score = f", {percent(run.finished.test['accuracy'])} in test" if run.finished else ""
    return f"{whose}{score}: {run.label}"


def preferred(
    options: list[tuple[str, str]], current: str | None, looked_at: str, known: list[str]
) -> str | None:
    """The run to show: the visitor's newest where it was not on the list before, else as it was."""
    ids = [run_id for _, run_id in options]
    if looked_at in ids and looked_at not in known:
        return looked_at
    return current if current in ids else next(iter(ids), None)
