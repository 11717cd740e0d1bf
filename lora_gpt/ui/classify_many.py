"""Many messages in the Classify tab: typed one a line or from a file, out as a table and a CSV."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from lora_gpt.service import Service, Verdict, verdicts_csv
from lora_gpt.ui import classify_view as view
from lora_gpt.ui.classify_runs import NO_RUN
from lora_gpt.ui.errors import complaint
from lora_gpt.ui.session import PRIVATE

UNASKED = "<p class='empty'>The verdicts will stand here, with a file to take away.</p>"
KINDS = [".csv", ".tsv", ".txt"]
FILE_HELP = (
    "<p class='sub small'>Or give a file: a CSV or TSV with a text column, or a TXT with one"
    " message a line. At most 2,000 messages.</p>"
)
FILE_NAME = "verdicts.csv"


def build_many(service: Service, run: gr.Dropdown) -> None:
    """Fill the section and wire it."""
    with gr.Row(elem_classes="card", elem_id="many"):
        with gr.Column(scale=2, min_width=280):
            gr.HTML("<h3>Several messages at once</h3>")
            texts = gr.Textbox(
                lines=5, max_lines=12, label="Messages", placeholder="One message a line"
            )
            send = gr.Button("Classify all")
            gr.HTML(FILE_HELP)
            upload = gr.File(label="File", file_types=KINDS, height=120, elem_id="messages-file")
        with gr.Column(scale=3, min_width=280):
            table = gr.HTML(UNASKED, elem_id="verdicts")
            take = gr.DownloadButton("Download as CSV", visible=False, size="md")

    def nothing(sentence: str = UNASKED) -> list[Any]:
        # What stood there told of other messages, or of another classifier.
        return [sentence, gr.DownloadButton(visible=False)]

    def shown(verdicts: Sequence[Verdict]) -> list[Any]:
        # The mark at the start tells spreadsheets that the file is UTF-8.
        contents = verdicts_csv(verdicts).encode("utf-8-sig")
        kept = save_bytes_to_cache(contents, FILE_NAME, take.GRADIO_CACHE)
        return [view.table_html(verdicts), gr.DownloadButton(value=kept, visible=True)]

    def answered(run_id: str | None, ask: Callable[[str], Sequence[Verdict]]) -> list[Any]:
        try:
            if not run_id:
                raise ValueError(NO_RUN)
            return shown(ask(run_id))
        except (ValueError, OSError) as error:
            return nothing(f"<p class='empty'>{complaint(error)}</p>")

    def of_lines(run_id: str | None, given: str) -> list[Any]:
        return answered(run_id, lambda run: service.classify_lines(run, given))

    def of_file(run_id: str | None, path: str) -> list[Any]:
        return answered(run_id, lambda run: service.classify_file(run, Path(path)))

    send.click(of_lines, [run, texts], [table, take], show_progress="minimal", **PRIVATE)
    run.change(nothing, None, [table, take], show_progress="hidden", **PRIVATE)
    upload.upload(of_file, [run, upload], [table, take], show_progress="minimal", **PRIVATE)
