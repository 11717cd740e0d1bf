"""The page: header, legend, four tabs, and how it is served.

Knows which tabs there are, nothing of what they do.
"""

from typing import Any

import gradio as gr

from lora_gpt.service import Service
from lora_gpt.ui import classify_tab, compare_tab, model_tab, train_tab
from lora_gpt.ui.session import open_session
from lora_gpt.ui.theme import LAUNCH

TABS = {
    "Model": model_tab.build_tab,
    "Train": train_tab.build_tab,
    "Compare": compare_tab.build_tab,
    "Classify": classify_tab.build_tab,
}
LARGEST_UPLOAD = "20mb"
UPLOADS_CHECKED, UPLOADS_KEPT = 3600, 24 * 3600  # seconds

HEADER = """<h1>What does <b>LoRA</b> do to GPT-2?</h1>
<p class="sub">LoRA, low-rank adaptation, freezes a pretrained model and trains two small matrices
beside each of its weights. Here it learns to tell spam, messages that nobody asked for, from ham,
all others.</p>"""
LEGEND = """<p class="key"><span><i class="f"></i>frozen</span>
<span><i class="l"></i>LoRA, trained</span><span><i class="h"></i>new head, trained</span></p>"""


def build(service: Service) -> gr.Blocks:
    """The whole page over `service`, not yet served."""
    with gr.Blocks(
        title="What does LoRA do to GPT-2?",
        analytics_enabled=False,
        delete_cache=(UPLOADS_CHECKED, UPLOADS_KEPT),
    ) as demo:
        session = open_session(demo)
        gr.HTML(HEADER, elem_id="header")
        gr.HTML(LEGEND, elem_id="legend")
        with gr.Tabs(elem_id="tabs"):
            for name, build_tab in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    build_tab(service, session)
    return demo


def serve(demo: gr.Blocks, **options: Any) -> str:
    """Serve `demo` in threads of this process and return its address.

    `options` are those of `Blocks.launch`. GET /healthz answers {"status": "ok"}.
    """
    told = {"max_file_size": LARGEST_UPLOAD, "quiet": True, "prevent_thread_lock": True}
    app, address, _ = demo.launch(**(LAUNCH | told | options))
    app.add_api_route("/healthz", lambda: {"status": "ok"}, include_in_schema=False)
    return address
