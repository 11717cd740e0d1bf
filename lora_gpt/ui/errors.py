"""Turns a refusal into a sentence on the page. Nothing but ValueError and OSError is caught."""

import functools
import inspect
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr

from lora_gpt.config import BadValue
from lora_gpt.words import label_of, labelled


def complaint(error: BaseException) -> str:
    """What `error` says, every field named as on the page; safe to show as HTML."""
    if isinstance(error, BadValue):
        got = "" if error.value in (None, "", [], ()) else f"; got {error.value!r}"
        return escape(f"{label_of(error.field)} {labelled(error.rule)}{got}")
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename else ""
        return escape(f"{error.strerror}{name}")
    return escape(labelled(str(error)))


def refusal(error: BaseException) -> gr.Error:
    """The toast for `error`, without a traceback in the log: a refusal is no fault."""
    return gr.Error(complaint(error), print_exception=False, title="Not possible")


def refused_html(error: BaseException) -> str:
    """The same sentence for a place beside the controls, where a toast at each key would annoy."""
    return f'<p class="refused" role="alert">{complaint(error)}</p>'


def guard(handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler` with its ValueError and OSError shown to the visitor; a generator stays one."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def guarded_steps(*values: Any, **named: Any) -> Iterator[Any]:
            try:
                yield from handler(*values, **named)
            except (ValueError, OSError) as error:
                raise refusal(error) from error

        return guarded_steps

    @functools.wraps(handler)
    def guarded(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except (ValueError, OSError) as error:
            raise refusal(error) from error

    return guarded
