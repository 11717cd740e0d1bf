"""What the Train tab shows of the messages before a training, as HTML: pure functions.

Messages are text of strangers and are escaped. Knows nothing of gradio.
"""

from html import escape

from lora_gpt.service import Preview
from lora_gpt.words import percent

LONGEST_SHOWN = 220
"""Characters of a sample message."""


def preview_html(preview: Preview) -> str:
    """Balance, parts, what stands on both sides of the split, and a few messages."""
    note = f'<p class="sub small">{kept_note(preview)} {duplicates_note(preview)}</p>'
    sections = (_balance(preview), _parts(preview), note, _samples(preview))
    return f'<div class="preview">{"".join(f"<div>{each}</div>" for each in sections)}</div>'


def _balance(preview: Preview) -> str:
    total = preview.spam + preview.ham
    share = preview.spam / total
    told = f"{preview.spam:,} spam ({percent(share)}), {preview.ham:,} ham ({percent(1 - share)})"
    return (
        f"<h3>{total:,} messages in the file</h3>"
        f'<div class="bar" role="img" aria-label="{told}">'
        f'<i class="spam" style="width:{100 * share:.2f}%"></i>'
        f'<i class="ham" style="width:{100 * (1 - share):.2f}%"></i></div>'
        f'<p class="key"><span><i class="spam"></i>{preview.spam:,} spam, {percent(share)}</span>'
        f'<span><i class="ham"></i>{preview.ham:,} ham, {percent(1 - share)}</span></p>'
    )


def _parts(preview: Preview) -> str:
    parts = {
        "training": (preview.train, "learnt from"),
        "validation": (preview.validation, "watched, never learnt from"),
        "test": (preview.test, "looked at once, at the end"),
    }
    rows = [
        f'<tr><th scope="row">{name}</th><td class="n">{spam + ham:,}</td>'
        f'<td class="n">{spam:,}</td><td class="n">{ham:,}</td><td>{use}</td></tr>'
        for name, ((spam, ham), use) in parts.items()
    ]
    return (
        '<div class="scroll"><table class="plain"><thead><tr><th scope="col">part</th>'
        '<th scope="col" class="n">messages</th><th scope="col" class="n">spam</th>'
        '<th scope="col" class="n">ham</th><th scope="col"></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def kept_note(preview: Preview) -> str:
    """How many of the messages are used, where some are not."""
    total = preview.spam + preview.ham
    used = sum(preview.train) + sum(preview.validation) + sum(preview.test)
    if used == total:
        return ""
    return f"{total - used:,} messages are left out, so that there is as much ham as spam."


def duplicates_note(preview: Preview) -> str:
    """What the test part shares with the training part, and what it does to the accuracy."""
    size = sum(preview.test)
    if not preview.near:
        return "No test message stands in the training part, neither word for word nor nearly so."
    alike = preview.near - preview.leaked
    found = []
    if preview.leaked:
        found.append(f"{preview.leaked:,} word for word")
    if alike:
        found.append(f"{alike:,} nearly so")
    return (
        f"Of {size:,} test messages, {preview.near:,} also stand in the training part:"
        f" {' and '.join(found)}. The test accuracy flatters by that much at most;"
        " “Keep duplicates apart” under More knobs prevents it."
    )


def _samples(preview: Preview) -> str:
    rows = [
        f'<li><span class="tag {word}">{word}</span> {escape(_cut(message.text))}</li>'
        for message in preview.samples
        for word in ("spam" if message.is_spam else "ham",)
    ]
    return f'<h3>Some of the training messages</h3><ul class="samples">{"".join(rows)}</ul>'


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN].rstrip() + " …"
