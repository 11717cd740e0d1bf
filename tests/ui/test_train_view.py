import re
from dataclasses import replace

import pytest

from lora_gpt.config import RunConfig
from lora_gpt.core.data import Message
from lora_gpt.events import (
    Adapter,
    Checkpoint,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Started,
    Step,
    Stopped,
    Validation,
)
from lora_gpt.service import Plan, Preview, RunSummary
from lora_gpt.ui.train_preview import duplicates_note, kept_note, preview_html
from lora_gpt.ui.train_result import confusion, mistakes, result_html
from lora_gpt.ui.train_state import (
    MOST_LINES,
    MOST_POINTS,
    Course,
    accuracy_lines,
    epochs_begin,
    fold,
    log_lines,
    loss_lines,
    smooth,
    thin,
)
from lora_gpt.ui.train_view import (
    epochs_html,
    plan_html,
    progress_html,
    run_choice,
    scale_html,
    standing,
    status_words,
)
from lora_gpt.ui.train_watch import figures

HOSTILE = "<img src=x onerror=alert(1)> ${1+1} {{7*7}}"


TWO = RunConfig().changed(epochs=2)


def started(steps=298, per_epoch=149, first=0):
    return Started(steps, per_epoch, 1195, 100, 299, 3, 9, 147_970, 4_421_634, "cpu", 2, first)


def step(number, loss=0.5, per_epoch=149):
    epoch, batch = divmod(number, per_epoch)
    return Step(number, epoch + 1, batch + 1, loss, 0.75, 1e-3, 1.0, 300, 8, 1.0, 1240.0, 33.0, 12)


def metrics(tn=145, fp=4, fn=4, tp=146, interval=(0.948, 0.986), wrong=()):
    size = tn + fp + fn + tp
    return {
        "size": size,
        "accuracy": (tn + tp) / size,
        "interval": list(interval),
        "precision": 0.97,
        "recall": 0.97,
        "f1": 0.973,
        "mcc": 0.946,
        "auc": 0.99,
        "loss": 0.1,
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
        "misclassified": list(wrong),
    }


def finished(test=None, baseline=None):
    return Finished(298, 41.0, 55.0, 0.99, None, test or metrics(), baseline or metrics(), 310.0)


def course(*events, status="running", mine=True):
    known = Course(run="abc", label="mini, LoRA r 8", config=TWO, mine=mine, status=status)
    return fold(known, events)


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


# --- the state ---------------------------------------------------------------------------------


def test_events_in_pieces_give_the_same_state_as_all_at_once():
    """Whoever watched from the start and whoever comes back see the same."""
    events = [Queued(), Progress("reading", 0, 1), started(), Validation(0, 0.9, 0.5)]
    events += [step(n) for n in range(30)] + [Validation(25, 0.6, 0.8), Adapter(30), finished()]
    pieces = course()
    for event in events:
        pieces = fold(pieces, [event])
    assert pieces == course(*events)
    assert (pieces.done, pieces.has_adapter, pieces.progress) == (30, True, None)


def test_a_resumed_run_forgets_what_came_after_its_checkpoint():
    """Steps that are taken twice are drawn once; the look at the checkpoint stays."""
    before = [started(), Validation(0, 0.9, 0.5), *map(step, range(37)), Validation(25, 0.6, 0.8)]
    again = course(*before, Validation(30, 0.5, 0.8), Stopped(37), Resumed(25), Queued())
    assert [each.step for each in again.steps] == list(range(25))
    assert [look.step for look in again.looks] == [0, 25]
    assert fold(again, [started(first=25), step(25)]).done == 26


def test_a_run_that_starts_over_has_one_look_at_step_0():
    anew = course(started(), Validation(0, 0.9, 0.5), step(0), Stopped(1), Resumed(0))
    anew = fold(anew, [started(), Validation(0, 0.8, 0.5)])
    assert anew.steps == ()
    assert [look.loss for look in anew.looks] == [0.8]


def test_a_fault_is_forgotten_when_the_run_goes_on():
    failed = course(started(), step(0), Failed("Too little memory."))
    assert failed.fault == "Too little memory."
    assert fold(failed, [Resumed(0)]).fault == ""


# --- curves ------------------------------------------------------------------------------------


def test_a_short_curve_is_drawn_whole():
    assert thin([1.0] * MOST_POINTS) == list(range(MOST_POINTS))


@pytest.mark.parametrize("size", [401, 1_000, 14_900])
def test_a_long_curve_keeps_its_ends_and_its_spikes(size):
    """A single spike among thousands of steps is still the highest point that is drawn."""
    losses = [1.0 + (n % 7) / 100 for n in range(size)]
    losses[size // 3], losses[size // 2] = 9.0, 0.01
    places = thin(losses)
    assert len(places) <= MOST_POINTS
    assert {0, size - 1, size // 3, size // 2} <= set(places)
    assert places == sorted(places)


def test_a_growing_curve_changes_only_at_its_end():
    """What was sent before is sent again unchanged, apart from the last stretch."""
    losses = [((n * 37) % 101) / 100 for n in range(3_000)]
    one, two = thin(losses[:2_990]), thin(losses[:2_991])
    assert one[:-4] == two[: len(one) - 4]


def test_smoothing_does_not_start_at_0():
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([]) == []


def test_a_loss_of_0_is_drawn():
    training, calm, validation = loss_lines(course(started(), step(0, 0.0), Validation(1, 0.0, 1)))
    assert (training.x, training.y) == ((0,), (0.0,))
    assert (validation.y, calm.y) == ((0.0,), ())


def test_accuracy_is_in_percent():
    training, validation = accuracy_lines(course(started(), step(0), Validation(1, 0.4, 8 / 9)))
    assert (training.y, validation.y) == ((75.0,), (88.89,))


def test_epochs_are_marked_until_they_crowd():
    assert epochs_begin(course(started(298, 149))) == [149]
    assert epochs_begin(course(started(60, 149))) == []
    assert epochs_begin(course(started(100 * 149, 149))) == []


def test_charts_are_empty_before_the_first_step():
    assert figures(course(started()), smoothed=False) == (None, None)


def test_charts_end_with_the_last_values_in_words():
    """Training is solid, validation dashed, each named at its end; the test has its interval."""
    seen = course(started(), *[step(n, 1 / (n + 1)) for n in range(298)], Validation(298, 0.2, 0.9))
    loss, accuracy = figures(fold(seen, [finished()]), smoothed=True)
    assert [trace["line"]["dash"] for trace in loss["data"]] == ["solid", "solid", "6px,4px"]
    words = [note["text"] for note in loss["layout"]["annotations"]]
    assert "validation 0.200" in words
    # What stands at the end of a line is one batch, or a mean of many, and is called so.
    assert [word.split()[0] for word in words[:1]] == ["smoothed"]
    bare, _ = figures(seen, smoothed=False)
    assert bare["layout"]["annotations"][0]["text"] == f"last batch {1 / 298:.3f}"
    assert "epoch 2" in words
    assert "validation 0.200 after 298 steps" in loss["description"]
    assert accuracy["data"][-1]["error_y"]["arrayminus"] == pytest.approx([97.3 - 94.8], abs=0.1)


def test_every_epoch_stands_with_its_means():
    """The mean of its losses, not the last one; who is measured when is said."""
    steps = [step(n, 1.0 if n < 149 else 0.5 + (n == 297)) for n in range(298)]
    seen = course(started(), Validation(0, 0.9, 0.5), *steps, Validation(149, 0.4, 0.8))
    words = text_of(epochs_html(seen))
    assert "1 1.000 75.0% 0.400 80.0%" in words
    assert f"2 {0.5 + 1 / 149:.3f} 75.0% 0.400 80.0%" in words
    assert "finished model" not in words and "dotted" not in words
    words = text_of(epochs_html(replace(fold(seen, [finished()]), twin=paired().twin)))
    assert "The finished model calls 99.0% of them right" in words and "dotted grey line" in words
    assert "1 0.500 75.0% none none" in text_of(epochs_html(course(started(), step(0))))
    assert epochs_html(course(started())) == ""


def test_the_status_is_said_when_it_changes_alone():
    """A screen reader would read a bar every second."""
    seen = course(started(), step(0))
    assert status_words(seen) == status_words(fold(seen, [step(1)])) == "mini, LoRA r 8: running."
    assert status_words(Course()) == ""


# --- the log -----------------------------------------------------------------------------------


def test_the_log_reads_like_the_labs():
    lines = log_lines(course(started(), Validation(0, 0.9, 0.5), *[step(n) for n in range(12)]))
    assert lines == [
        "Epoch 1 | Validation after 0 steps | Loss: 0.9000 | Accuracy: 50.00%",
        "Epoch 1 | Batch 1 | Loss: 0.5000",
        "Epoch 1 | Batch 10 | Loss: 0.5000",
    ]


def test_a_look_after_an_epoch_belongs_to_it():
    lines = log_lines(course(started(), *map(step, range(150)), Validation(149, 0.4, 0.9)))
    assert lines[-2].startswith("Epoch 1 | Validation after 149 steps")
    assert lines[-1].startswith("Epoch 2 | Batch 1 |")


def test_a_long_log_says_what_it_leaves_out():
    lines = log_lines(course(started(5_000, 149), *map(step, range(5_000))))
    assert len(lines) == MOST_LINES + 1
    assert re.fullmatch(r"\(\d+ earlier lines\)", lines[0])


# --- where the run stands ----------------------------------------------------------------------


def test_a_waiting_run_tells_its_place():
    waiting = replace(course(Queued(), status="queued"), position=3)
    assert "number 3 in the queue" in standing(waiting)[1]


def test_a_running_run_tells_step_epoch_time_and_speed():
    share, words = standing(course(started(), *map(step, range(96))))
    assert share == pytest.approx(96 / 298)
    assert text_of(words) == (
        "step 96 of 298 , epoch 1 of 2, 12 s left, 1,240 tokens/s, 33.0 messages/s"
    )


def test_a_download_tells_its_share_and_time_left():
    share, words = standing(course(Progress("downloading the weights", 25, 100, 90.0)))
    assert share == 0.25
    assert text_of(words) == "Downloading the weights 25%, 1 min 30 s left"


@pytest.mark.parametrize(
    ("status", "events", "told"),
    [
        ("stopped", [started(), step(0), Stopped(1)], "Stopped at step 1 of 298. Resume starts"),
        ("stopped", [Stopped(0)], "Stopped before the first step."),
        ("failed", [started(), step(0), Failed("Too little memory.")], "Too little memory. Change"),
        ("interrupted", [started(), step(0)], "Interrupted at step 1 of 298: the server was"),
        ("finished", [started(), finished()], "298 steps in 41 s, 55 s with loading"),
    ],
)
def test_every_end_says_what_happened_and_what_can_be_done(status, events, told):
    assert told in text_of(progress_html(course(*events, status=status)))


def test_a_stopped_run_tells_where_it_goes_on():
    stopped = course(started(), *map(step, range(30)), Checkpoint(25), Stopped(30))
    html = progress_html(replace(stopped, status="stopped"))
    assert "Resume goes on from step 25" in html


def test_others_are_not_told_to_resume():
    """Only the browser that started a run may stop and resume it."""
    html = text_of(progress_html(course(started(), Stopped(0), status="stopped", mine=False)))
    assert "Resume" not in html
    assert "started elsewhere" in html


def test_a_fault_and_a_label_are_shown_as_text():
    failed = replace(course(Failed(HOSTILE), status="failed"), label=HOSTILE)
    assert "<img" not in progress_html(failed)


def test_the_reason_of_a_failure_names_the_knob_as_the_page_does():
    fault = "learning_rate: the loss became nan; lower it, or raise batch_size"
    failed = course(Failed(fault), status="failed")
    assert "Learning rate: the loss became nan" in progress_html(failed)
    assert "raise “Batch size”" in progress_html(failed)


# --- the result --------------------------------------------------------------------------------


def test_a_finished_run_shows_model_and_baseline_side_by_side():
    done = course(started(), finished(baseline=metrics(tn=140, fp=9)), status="finished")
    words = text_of(result_html(done))
    for told in ("test accuracy 97.3%", "linear baseline 95.7%", "3.35% 147,970 of 4,421,634"):
        assert told in words
    assert result_html(course(started())) == ""


def test_the_confusion_names_every_count():
    words = text_of(confusion(metrics(tn=1, fp=2, fn=3, tp=4)))
    assert words == "called spam called ham is spam 4 right 3 missed is ham 2 false alarm 1 right"


def test_misclassified_messages_are_shown_as_text():
    """Markup in a message is shown, never run, whatever its label claims to be."""
    wrong = [{"text": HOSTILE, "label": "<b>spam</b>", "p_spam": 0.9}]
    html = mistakes(metrics(wrong=wrong))
    assert "<img" not in html
    assert "<b>spam" not in html
    assert "&lt;img" in html


def test_no_mistakes_is_said_in_words():
    assert "every test message was called right" in mistakes(metrics())


def test_a_missing_measure_is_said_in_words():
    """AUC is undefined where a class is missing."""
    one_class = metrics() | {"auc": None}
    assert "not defined" in result_html(course(finished(one_class), status="finished"))


# --- before the start --------------------------------------------------------------------------


def test_the_plan_tells_steps_share_time_and_memory():
    words = text_of(plan_html(Plan(266, 133, 147_970, 4_421_634, 41.0, 310.0, "cpu"), RunConfig()))
    for told in ("266 2 epochs of 133", "3.35% of 4,421,634", "41 s", "on cpu", "330 MB"):
        assert told in words
    assert "16 bits" not in words
    narrow = Plan(266, 133, 147_970, 4_421_634, 41.0, 310.0, "cpu", "bfloat16")
    assert "measured here, on cpu, 16 bits" in text_of(plan_html(narrow, RunConfig()))


def test_the_plan_of_two_runs_tells_the_time_of_both():
    plan = Plan(266, 133, 147_970, 4_421_634, 41.0, 310.0, "cpu")
    words = text_of(plan_html(plan, RunConfig(), 2))
    assert "steps each 266" in words and "82 s" not in words and "1 min" in words
    assert "2 runs, one after the other" in words and "2 runs" not in text_of(
        plan_html(plan, RunConfig())
    )


def test_a_hundred_epochs_are_written_out():
    plan = Plan(13_300, 133, 147_970, 4_421_634, 41.0, 310.0, "cpu")
    assert "100 epochs of 133" in text_of(plan_html(plan, RunConfig()))


def test_a_bundled_run_is_no_stranger():
    """It was started by nobody's browser; whose run it is decides what is said of it."""
    told = {
        "comes with the app": Course(run="a", label="mini", bundled=True, status="finished"),
        "started elsewhere": Course(run="a", label="mini", status="finished"),
        "Let others watch it": Course(run="a", label="mini", mine=True, status="finished"),
    }
    for words, seen in told.items():
        assert [each in text_of(progress_html(seen)) for each in told] == [
            each == words for each in told
        ]


def test_the_scale_shows_its_arithmetic():
    assert "16 / 8 = 2" in text_of(scale_html(RunConfig()))
    stable = RunConfig().changed(rank=4, rank_stabilised=True)
    assert "16 / √4 = 8" in text_of(scale_html(stable))


def preview(leaked=0, near=0, text="Hi"):
    samples = (Message(text, True), Message("See you at eight", False))
    return Preview(10, 30, (6, 6), (1, 1), (3, 3), leaked, near, (5,), (6,), samples)


def test_the_preview_counts_every_part():
    words = text_of(preview_html(preview()))
    assert "40 messages in the file" in words
    assert "10 spam, 25.0%" in words
    assert "training 12 6 6" in words
    assert kept_note(preview()).startswith("20 messages are left out")


def test_what_leaks_is_said():
    assert duplicates_note(preview()).startswith("No test message")
    assert "1 word for word and 2 nearly so" in duplicates_note(preview(leaked=1, near=3))


def test_sample_messages_are_shown_as_text_and_not_at_any_length():
    html = preview_html(preview(text=HOSTILE + "x" * 5_000))
    assert "<img" not in html
    assert len(html) < 4_000


def test_a_run_in_the_list_tells_status_and_accuracy():
    done = RunSummary("a", "mini, LoRA r 8", "finished", 0.0, RunConfig(), started(), finished())
    assert run_choice(done, "finished") == "mini, LoRA r 8 (finished, 97.3% in test)"


# --- the run beside it ---------------------------------------------------------------------------


def paired(*events):
    """A finished run, and its twin from random weights that has said `events`."""
    twin = course(*events, status="running")
    twin = replace(twin, config=RunConfig().changed(init="random"))
    return replace(course(started(), step(0), step(1), finished(), status="finished"), twin=twin)


def test_the_run_beside_is_drawn_and_told():
    """Its curve from its first look on, its accuracy from its end on."""
    end = finished(test=metrics(fp=40, tn=109, interval=(0.8, 0.9)))
    alone, beside = paired(), paired(started(), Validation(0, 0.9, 0.5), step(0), end)
    for before, after in zip(figures(alone, False), figures(beside, False), strict=True):
        assert len(after["data"]) == len(before["data"]) + 1
        assert "random " in after["description"]
    assert "never saw a text" not in result_html(alone)
    words = "The same training on weights that never saw a text: 85.3%"
    assert words in text_of(result_html(beside))


def test_a_pair_is_settled_when_both_are():
    assert not paired().settled
    both = paired(started(), finished())
    assert replace(both, twin=replace(both.twin, status="finished")).settled
    assert replace(both, twin=None).settled
