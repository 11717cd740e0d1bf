"""What all tabs share: who the visitor is, which run they look at, and the clock.

Knows nothing of runs or of what a tab shows.
"""

import secrets
from dataclasses import dataclass
from typing import Any

import gradio as gr

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Arguments of every event of the page: it is no part of the public API."""
TICK: dict[str, Any] = PRIVATE | {"queue": False, "show_progress": "hidden"}
"""Arguments of a tick: never queued, so that watching takes no place from a click."""
REDRAW: dict[str, Any] = TICK | {"trigger_mode": "always_last"}
"""Arguments of a redraw that follows a slider: the last position always wins."""
_LIVE = "element.setAttribute('role', 'status')"
STORAGE_KEY = "lora_gpt"
# A BrowserState is lost at every restart unless its secret stays. The secret reaches the browser
# and protects nothing: the owner's token does, because nobody can guess it.
STORAGE_SECRET = "lora_gpt keeps this place over restarts"


@dataclass(frozen=True)
class Session:
    """Components outside the tabs, made once for each page by `open_session`."""

    demo: gr.Blocks
    owner: gr.BrowserState
    """Unguessable token of this browser; empty until `ready` has run on the first visit."""
    run: gr.BrowserState
    """Id of the run that the visitor looks at; empty when there is none."""
    timer: gr.Timer
    """Ticks once a second while the page is visible."""
    ready: Any
    """The load event after which `owner` is set: `session.ready.then(attach, [session.owner])`."""


def spoken(elem_id: str, said: str = "") -> gr.HTML:
    """A region that is not seen and is read out when its text changes: a region that came together
    with its text would not be."""
    return gr.HTML(said, elem_id=elem_id, elem_classes="unseen", js_on_load=_LIVE)


def open_session(demo: gr.Blocks) -> Session:
    """Make the shared components; call it inside `demo`, before the tabs."""
    owner = gr.BrowserState("", storage_key=f"{STORAGE_KEY}-owner", secret=STORAGE_SECRET)
    run = gr.BrowserState("", storage_key=f"{STORAGE_KEY}-run", secret=STORAGE_SECRET)
    timer = gr.Timer(1.0)
    ready = demo.load(known_owner, owner, owner, **TICK)
    return Session(demo, owner, run, timer, ready)


def known_owner(token: object) -> str:
    """The browser's token as it is, or a new one on a first visit."""
    if isinstance(token, str) and 20 <= len(token) <= 100:
        return token
    return secrets.token_urlsafe(24)
