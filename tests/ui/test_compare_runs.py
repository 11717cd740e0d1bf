"""The runs in the Compare tab follow what happens, and are read only when something did."""

import os
from dataclasses import replace

import gradio as gr
import pytest

from lora_gpt.config import RunConfig
from lora_gpt.core.data import Message
from lora_gpt.core.evaluation import measure
from lora_gpt.events import Finished, Queued, Started, Step
from lora_gpt.service import Service
from lora_gpt.ui.compare_tab import runs_of

TEST = measure([Message("win", True), Message("hello", False)], [0.9, 0.1]).to_json()
STARTED = Started(298, 149, 1195, 100, 299, 3, 9, 147_970, 4_421_634, "cpu", 2)
FINISHED = Finished(298, 41.0, 55.0, 0.99, None, TEST, TEST, 310.0)
STEP = Step(0, 1, 1, 0.5, 0.5, 1e-3, 1.0, 9, 8, 0.1, 1.0, 1.0, 0.0)
SKIPPED = [gr.skip()] * 3


@pytest.fixture
def service(tmp_path):
    """A service without samples."""
    made = Service(tmp_path / "runs", samples=tmp_path / "none")
    yield made
    made.close()


def begun(service, owner):
    """A run that says that it takes its first step."""
    run = service.store.create(RunConfig(), owner)
    for event in (Queued(), STARTED, STEP):
        run.append(event)
    return run


def looked(service, before=None):
    """What Ada's page is sent, long after anything happened: a disk may count time in steps that
    a test is too fast for."""
    sent = runs_of(service, "ada", before)
    os.utime(service.store.root, (1, 1))
    return [*sent[:2], replace(sent[2], stamp=service.stamp())] if sent != SKIPPED else sent


def test_nothing_is_read_while_nothing_happens(service, monkeypatch):
    """Thirty pages ask every few seconds; steps of a run that goes on are no news here."""
    run = begun(service, "ada")
    *_, listed = looked(service)
    monkeypatch.setattr(service, "runs", lambda owner: pytest.fail("read again"))
    assert runs_of(service, "ada", listed) == SKIPPED
    run.append(STEP)
    assert runs_of(service, "ada", listed) == SKIPPED


def test_a_run_that_finishes_and_one_that_is_deleted_are_followed(service):
    run = begun(service, "ada")
    figure, table, listed = looked(service)
    assert (figure, table) == (None, "")
    run.append(FINISHED)
    figure, table, listed = looked(service, listed)
    assert len(figure["data"]) == 1 and "1. mini, LoRA r 8" in table
    run.delete()
    figure, table, listed = looked(service, listed)
    assert (figure, table) == (None, "")
    assert runs_of(service, "ada", listed) == SKIPPED


def test_a_run_of_somebody_else_redraws_nothing(service):
    begun(service, "ada").append(FINISHED)
    *_, listed = looked(service)
    begun(service, "bob").append(FINISHED)
    assert not listed.holds(service)
    figure, table, fresh = looked(service, listed)
    assert [figure, table] == SKIPPED[:2]
    assert runs_of(service, "ada", fresh) == SKIPPED


def test_a_run_that_finishes_while_the_list_is_read_is_seen_the_next_time(service, monkeypatch):
    run, read = begun(service, "ada"), service.runs

    def late(owner):
        found = read(owner)
        run.append(FINISHED)
        return found

    monkeypatch.setattr(service, "runs", late)
    *_, listed = looked(service)
    monkeypatch.setattr(service, "runs", read)
    assert "1. mini" in runs_of(service, "ada", listed)[1]
