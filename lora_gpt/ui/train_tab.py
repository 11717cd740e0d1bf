"""The Train tab: choose, see what it will cost, start, watch, and look at what came out.

Only wiring: what is shown stands in `train_view`, `train_result`, `train_preview` and `plots`, what
is known of a run in `train_state`. A handler looks at a run, it never trains.
"""

import secrets
from pathlib import Path
from typing import Any

import gradio as gr

from lora_gpt import plots
from lora_gpt.config import PRESET_LABELS, compared
from lora_gpt.service import Service
from lora_gpt.ui.errors import complaint, guard
from lora_gpt.ui.session import PRIVATE, TICK, Session
from lora_gpt.ui.train_form import UPLOAD, Form, build_form, whole
from lora_gpt.ui.train_preview import preview_html
from lora_gpt.ui.train_result import result_html
from lora_gpt.ui.train_stage import Stage, build_stage
from lora_gpt.ui.train_state import Course, log_lines
from lora_gpt.ui.train_view import (
    epochs_html,
    plan_html,
    progress_html,
    refusal_html,
    scale_html,
    status_words,
)
from lora_gpt.ui.train_watch import advance, attach, choices, figures

QUIET = PRIVATE | {"show_progress": "hidden"}
LATEST = QUIET | {"trigger_mode": "always_last", "concurrency_limit": 1}
"""A plan takes its time: only the last of many changes is worked out. One at a time: two changes in
the same moment are both sent, and the answer to the first must not come last."""
ADAPTER_ID, REPORT_ID = "train-adapter-file", "train-report-file"
SHOW_RUN = """() => { let moved = false; const until = Date.now() + 3000;
  for (const kind of ['wheel', 'touchmove', 'keydown', 'pointerdown'])
    addEventListener(kind, () => { moved = true; }, {once: true});
  const look = () => {
    const run = document.querySelector('#train-progress'), at = run?.getBoundingClientRect();
    if (at?.height && (at.top < 0 || at.bottom > innerHeight)) run.scrollIntoView();
    if (!moved && Date.now() < until) setTimeout(look, 200); };
  setTimeout(look, 100); }"""
"""On a phone a run stands below the knobs, and what comes above it may come after it: looked for
until it stays, or until somebody moves the page."""
OPEN_SHARED = f"""() => {{ if (!new URL(location).searchParams.has('run')) return;
  [...document.querySelectorAll('button[role=tab]')]
    .find((tab) => tab.textContent.trim() === 'Train')?.click();
  ({SHOW_RUN})(); }}"""
FORGET_SHARED = """() => { const here = new URL(location); here.searchParams.delete('run');
  history.replaceState(history.state, '', here); }"""


def build_tab(service: Service, session: Session) -> None:
    """Fill the tab; call it inside `gr.Tab`."""
    with gr.Row(elem_classes="split", equal_height=False):
        with gr.Column(scale=1, min_width=280, elem_classes="controls"):
            start_from = gr.Dropdown(
                [(label, name) for name, label in PRESET_LABELS.items()],
                value="default",
                label="Start from",
                info="Sets the knobs below, model and messages apart; change them as you like.",
                filterable=False,
            )
            form = build_form()
        with gr.Column(scale=3, min_width=320, elem_classes="stage"):
            stage = build_stage()
    wire_form(service, session, form, stage, start_from)
    wire_buttons(service, session, form, stage, start_from)
    wire_watching(service, session, stage)
    wire_files(service, stage)


# --- before the start --------------------------------------------------------------------------


def wire_form(
    service: Service, session: Session, form: Form, stage: Stage, start_from: gr.Dropdown
) -> None:
    """Knobs -> plan and preview."""
    about_data = [stage.preview, stage.lengths]

    def replan(name: str, *values: Any) -> tuple[str, str]:
        try:
            config, upload = form.read(values)
            plan, runs = service.plan(whole(config, upload)), len(compared(name, config))
            return plan_html(plan, config, runs), scale_html(config)
        except (ValueError, OSError) as error:
            return refusal_html(complaint(error)), gr.skip()

    def look_at_data(*values: Any) -> tuple[str, Any]:
        try:
            config, upload = form.read(values)
            seen = service.preview(whole(config, upload))
        except (ValueError, OSError) as error:
            return refusal_html(complaint(error)), None
        limit = config.training.max_tokens or config.architecture.context_length
        return preview_html(seen), plots.lengths(seen.spam_lengths, seen.ham_lengths, limit)

    start_from.input(form.preset_values, start_from, list(form.knobs.values()), **QUIET)
    source = form.knobs["data"]
    source.change(lambda name: gr.Column(visible=name == UPLOAD), source, form.columns, **TICK)
    method = form.knobs["method"]
    method.change(form.of_method, method, form.of_lora, **TICK)
    changes = [each.change for each in (start_from, *form.inputs)]
    asked, told = [start_from, *form.inputs], [stage.plan, form.scale]
    gr.on([session.demo.load, *changes], replan, asked, told, **LATEST)
    of_data = [form.knobs[name].change for name in DATA_KNOBS]
    triggers = [session.demo.load, form.upload.change, *of_data]
    gr.on(triggers, look_at_data, form.inputs, about_data, **LATEST)


DATA_KNOBS = (
    *("model", "data", "text_column", "label_column", "spam_label", "balance", "keep_apart"),
    *("stratify", "validation_fraction", "test_fraction", "seed", "max_tokens"),
)
"""Knobs that change which messages stand where, or how long they are."""


# --- the run -------------------------------------------------------------------------------------


def shown(stage: Stage, course: Course, smoothed: bool, before: Course | None) -> dict[Any, Any]:
    """What must be redrawn to show `course` where `before` is on the page; None redraws all."""
    fresh: dict[Any, Any] = {stage.course: course, stage.progress: progress_html(course)}
    if before is None:
        fresh[stage.doubt] = gr.Row(visible=False)  # it was about another run
    if before is None or _drawn(before) != _drawn(course):
        fresh[stage.loss], fresh[stage.accuracy] = figures(course, smoothed)
        fresh[stage.epochs] = epochs_html(course)
        fresh[stage.log] = "\n".join(log_lines(course))
        fresh[stage.result] = result_html(course)
    if before is None or before.status != course.status:
        fresh[stage.said] = status_words(course)
    if before is None or (before.status, before.has_adapter) != (course.status, course.has_adapter):
        may = course.mine
        fresh[stage.stop] = gr.Button("Stop", interactive=may and course.under_way)
        fresh[stage.resume] = gr.Button(interactive=may and course.resumable)
        fresh[stage.delete] = gr.Button(interactive=may and course.deletable)
        fresh[stage.files] = gr.Row(visible=course.has_adapter)
        fresh[stage.live] = gr.Column(visible=bool(course.run))
    return fresh


def _drawn(course: Course) -> tuple[Any, ...]:
    """What charts, log and result are made of."""
    twin = course.twin and (course.twin.steps, course.twin.looks, course.twin.finished)
    return course.steps, course.looks, course.finished, twin


def listed(service: Service, stage: Stage, owner: str, course: Course) -> dict[Any, Any]:
    """The list of runs, with the one that is looked at."""
    found = choices(service, owner, course)
    return {stage.runs: gr.Dropdown(found, value=course.run or None)}


def anew(service: Service, stage: Stage, run_id: str, owner: str, smoothed: bool) -> dict[Any, Any]:
    """Everything about `run_id` from its beginning; an empty id clears the stage."""
    course = attach(service, run_id, owner) if run_id else Course()
    return shown(stage, course, smoothed, None) | listed(service, stage, owner, course)


def wire_buttons(
    service: Service, session: Session, form: Form, stage: Stage, start_from: gr.Dropdown
) -> None:
    """Start, stop, resume, delete, and picking a run."""

    @guard
    def start(owner: str, smoothed: bool, name: str, *values: Any) -> dict[Any, Any]:
        if not owner:
            raise ValueError("The page is still loading; try again in a moment.")
        config, upload = form.read(values)
        first, *others = compared(name, config)
        run_id = service.start(first, owner, upload)
        for other in others:
            try:
                service.start(other, owner, upload)
            except ValueError as error:  # the first run is under way and is shown
                gr.Warning(f"Only the first of the two runs was started. {complaint(error)}")
        return anew(service, stage, run_id, owner, smoothed) | {session.run: run_id}

    @guard
    def stop(owner: str, course: Course) -> gr.Button:
        service.stop(course.run, owner)
        return gr.Button("Stopping …", interactive=False)

    @guard
    def resume(owner: str, smoothed: bool, course: Course) -> dict[Any, Any]:
        service.resume(course.run, owner)
        return anew(service, stage, course.run, owner, smoothed)

    @guard
    def delete(owner: str, smoothed: bool, course: Course) -> dict[Any, Any]:
        service.delete(course.run, owner)
        return anew(service, stage, "", owner, smoothed) | {session.run: ""}

    @guard
    def pick(run_id: str | None, owner: str, smoothed: bool) -> dict[Any, Any]:
        return anew(service, stage, run_id or "", owner, smoothed) | {session.run: run_id or ""}

    who, course, smoothed = session.owner, stage.course, stage.smoothed
    out, with_run = stage.watched, [*stage.watched, session.run]
    started = stage.start.click(start, [who, smoothed, start_from, *form.inputs], with_run, **QUIET)
    stage.stop.click(stop, [who, course], stage.stop, **QUIET)
    stage.resume.click(resume, [who, smoothed, course], out, **QUIET)
    picked = stage.runs.input(pick, [stage.runs, who, smoothed], with_run, **QUIET)
    stage.delete.click(lambda: gr.Row(visible=True), None, stage.doubt, **TICK)
    stage.keep.click(lambda: gr.Row(visible=False), None, stage.doubt, **TICK)
    deleted = stage.sure.click(delete, [who, smoothed, course], with_run, **QUIET)
    started.success(None, js=SHOW_RUN, **PRIVATE)
    for event in (started, picked, deleted):
        event.success(None, js=FORGET_SHARED, **PRIVATE)


def wire_watching(service: Service, session: Session, stage: Stage) -> None:
    """Coming back to a run, by a link or by what the browser remembers, and the clock."""

    def come_back(owner: str, own_run: str, smoothed: bool, request: gr.Request) -> dict[Any, Any]:
        asked = request.query_params.get("run", "")
        try:
            return anew(service, stage, asked or own_run, owner, smoothed)
        except (ValueError, OSError) as error:
            if asked:
                gr.Warning(f"The link leads to no run. {complaint(error)}")
            return anew(service, stage, "", owner, smoothed)

    def tick(owner: str, smoothed: bool, before: Course) -> dict[Any, Any]:
        if not before.run or before.settled:
            return {stage.course: gr.skip()}
        try:
            course = advance(service, before)
        except (ValueError, OSError) as error:
            gr.Warning(f"The run is gone. {complaint(error)}")
            return anew(service, stage, "", owner, smoothed)
        if course is before:
            return {stage.course: gr.skip()}
        fresh = shown(stage, course, smoothed, before)
        if course.status != before.status:
            fresh |= listed(service, stage, owner, course)
        return fresh

    who, course, smoothed = session.owner, stage.course, stage.smoothed
    smoothed.change(figures, [course, smoothed], [stage.loss, stage.accuracy], **TICK)
    session.ready.then(come_back, [who, session.run, smoothed], stage.watched, **QUIET).then(
        None, js=OPEN_SHARED, **PRIVATE
    )
    session.timer.tick(tick, [who, smoothed, course], stage.watched, **TICK)


# --- files ---------------------------------------------------------------------------------------


def wire_files(service: Service, stage: Stage) -> None:
    """Buttons that build a file when they are pressed.

    A DownloadButton that gets its file in its own click downloads nothing the first time: the
    button that is seen fills a hidden one and presses it.
    """

    @guard
    def adapter(course: Course) -> str:
        return str(service.adapter_archive(course.run, Path(stage.adapter.GRADIO_CACHE)))

    @guard
    def report(course: Course) -> str:
        return kept(stage, f"report-{course.run}.md", service.report(course.run).encode())

    for button, build, name in (
        (stage.adapter, adapter, ADAPTER_ID),
        (stage.report, report, REPORT_ID),
    ):
        hidden = gr.DownloadButton(visible="hidden", elem_id=name)
        press = f"() => document.querySelector('#{name}').click()"
        button.click(build, stage.course, hidden, **PRIVATE).success(None, js=press, **PRIVATE)


def kept(stage: Stage, name: str, contents: bytes) -> str:
    """Write a file where gradio looks after it and clears it away, and return its path."""
    folder = Path(stage.adapter.GRADIO_CACHE) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(contents)
    return str(folder / name)
