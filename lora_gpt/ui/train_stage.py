"""The right side of the Train tab: its widgets, in their places, without any behaviour."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_gpt.ui.chart import chart
from lora_gpt.ui.session import spoken
from lora_gpt.ui.train_state import Course


@dataclass(frozen=True)
class Stage:
    """The widgets of the right side."""

    course: gr.State
    plan: gr.HTML
    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    delete: gr.Button
    doubt: gr.Row
    """Asks once more before a run is deleted."""
    sure: gr.Button
    keep: gr.Button
    runs: gr.Dropdown
    live: gr.Column
    progress: gr.HTML
    said: gr.HTML
    """The status in words that are read out; the bar beside it changes every second."""
    smoothed: gr.Checkbox
    loss: gr.HTML
    accuracy: gr.HTML
    epochs: gr.HTML
    log: gr.Textbox
    result: gr.HTML
    files: gr.Row
    adapter: gr.Button
    report: gr.Button
    preview: gr.HTML
    lengths: gr.HTML

    @property
    def watched(self) -> list[Any]:
        """Everything that changes while a run goes on."""
        return [
            *(self.course, self.stop, self.resume, self.delete, self.doubt, self.runs),
            *(self.live, self.progress, self.said),
            *(self.loss, self.accuracy, self.epochs, self.log, self.result, self.files),
        ]


def build_stage() -> Stage:
    """The right side: plan and buttons, what goes on, what came out, the messages."""
    course, plan = gr.State(Course()), gr.HTML(elem_id="train-plan")
    with gr.Row(elem_classes="actions"):
        start = gr.Button("Start training", variant="primary", elem_id="train-start", min_width=150)
        stop = gr.Button("Stop", interactive=False, elem_id="train-stop", min_width=90)
        resume = gr.Button("Resume", interactive=False, elem_id="train-resume", min_width=90)
        delete = gr.Button("Delete", interactive=False, elem_id="train-delete", min_width=90)
    with gr.Row(elem_classes="actions doubt", visible=False) as doubt:
        gr.HTML("<p>Delete this run with its adapter and its log, for good?</p>")
        sure = gr.Button("Delete for good", variant="stop", elem_id="train-sure", min_width=150)
        keep = gr.Button("Keep it", elem_id="train-keep", min_width=90)
    runs = gr.Dropdown(
        [],
        label="Look at",
        info="Your runs, newest first, and the bundled ones.",
        elem_id="train-runs",
        filterable=False,
    )
    with gr.Column(visible=False) as live:
        progress = gr.HTML(elem_id="train-progress")
        said = spoken("train-said")
        result = gr.HTML(elem_id="train-result")
        with gr.Row(elem_classes="actions", visible=False) as files:
            adapter = gr.Button("Adapter and report (zip)", elem_id="train-adapter")
            report = gr.Button("Report (Markdown)", elem_id="train-report")
        with gr.Row(elem_classes="charts"):
            with gr.Column(min_width=300, elem_classes="card"):
                gr.HTML(
                    "<h3>Loss, in nats a message</h3>"
                    "<p class='sub small'>0.69 is guessing, 0 is sure and right.</p>"
                )
                loss = chart("Loss over the steps", empty="The loss appears at the first step.")
            with gr.Column(min_width=300, elem_classes="card"):
                gr.HTML(
                    "<h3>Accuracy</h3><p class='sub small'>Share of the messages called right.</p>"
                )
                accuracy = chart(
                    "Accuracy over the steps", empty="The accuracy appears at the first step."
                )
        smoothed = gr.Checkbox(label="Smooth the training loss")
        epochs = gr.HTML(elem_id="train-epochs")
        log = gr.Textbox(label="Log", lines=8, max_lines=8, elem_id="train-log", interactive=False)
    with gr.Accordion("The messages", elem_classes="card"):
        preview = gr.HTML(elem_id="train-preview")
        gr.HTML(
            "<h3>How long the messages are</h3><p class='sub small'>Hatched: spam. Plain: ham. What"
            " is longer than the model reads is cut, and stands in the last bar.</p>"
        )
        lengths = chart("Lengths of the messages", 200, "The lengths appear with the messages.")
    return Stage(
        *(course, plan, start, stop, resume, delete, doubt, sure, keep, runs),
        *(live, progress, said, smoothed, loss, accuracy, epochs, log),
        *(result, files, adapter, report, preview, lengths),
    )
