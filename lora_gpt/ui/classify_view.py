"""What the Classify tab shows, as HTML: verdicts, tinted words, tables, the size of each update.

Pure functions of plain values. Every text of a visitor is escaped here, at the place where it
enters the HTML. Knows nothing of gradio, runs or models.
"""

from collections.abc import Sequence
from html import escape
from typing import Protocol

from lora_gpt.words import percent

MOST_ROWS = 50
"""Rows of a table that are shown; the file to download has all."""
LEAST_WEIGHT = 0.005
"""Words that move the probability by less than half a percentage point are not tinted."""
STRONGEST_TINT = 50
"""Percent of colour behind the word that moves the most; more would be hard to read."""
FULL_TINT = 0.25
"""How far a word must move the probability for the full colour, where none moves it further."""
MOST_BARS = 32
"""Singular values that are drawn for one layer."""
MOST_TOLD = 60
"""Characters of a message that are read out before its verdict."""

EXAMPLES: tuple[tuple[bool, str], ...] = (
    (True, "FINAL NOTICE: your parcel is on hold. Pay $1.99 today at post-redeliver.info"),
    (True, "Congratulations! You won a 500 gift card. Claim it before midnight: win-card.top"),
    (True, "Bank alert: your account is locked. Confirm your password at secure-login.help"),
    (False, "Running ten minutes late, the bus never came. Can you order me a coffee?"),
    (False, "Mum says dinner is at seven, and please bring the blue folding chairs"),
    (False, "Your parcel is at my place, the postman rang here. Pick it up any time"),
)
"""Messages to try, spam first. Written for this page: no data set holds them."""


class Verdict(Protocol):
    """What is shown of a verdict, see `core.classify.Verdict`."""

    @property
    def text(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def p_spam(self) -> float: ...
    @property
    def truncated(self) -> bool: ...


class Word(Protocol):
    """What is shown of a word, see `core.insight.Word`."""

    @property
    def text(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def without(self) -> float: ...


class Update(Protocol):
    """What is shown of a layer's update, see `core.insight.Update`."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> float: ...
    @property
    def spectrum(self) -> tuple[float, ...]: ...


# --- one message -------------------------------------------------------------------------------


def verdict_html(after: Verdict, before: Verdict, strength: float = 1.0) -> str:
    """The label in large, and p_spam after and before training as bars on one scale."""
    note = ""
    if after.truncated:
        cut = "The message is longer than the model reads; its end was left out."
        note = f"<p class='sub small'>{cut}</p>"
    how = _at(strength)
    name = how.strip() or "after training"
    return (
        "<div class='answer'>"
        f"<p class='verdict {after.label}'>{after.label}"
        f" <span>{percent(after.p_spam)} probability of spam{how}</span></p>"
        "<div class='meters'>"
        + _meter(name, after.p_spam, after.label)
        + _meter("before training", before.p_spam, "frozen")
        + "</div>"
        "<p class='sub small'>Before training the same model stands under a new head that has"
        f" learned nothing yet. The line marks 50%.</p>{note}</div>"
    )


def told_html(verdict: Verdict, strength: float = 1.0) -> str:
    """The verdict in one sentence for screen readers.

    It names the message: two messages with one verdict must not read as if nothing had changed.
    """
    start = verdict.text if len(verdict.text) <= MOST_TOLD else f"{verdict.text[:MOST_TOLD]} …"
    said = f"{verdict.label}, {percent(verdict.p_spam)} probability of spam{_at(strength)}"
    return f"“{escape(start)}”: {said}."


def _at(strength: float) -> str:
    return "" if strength == 1 else f" at strength {strength:g}"


def _meter(name: str, p_spam: float, kind: str) -> str:
    said = percent(p_spam)
    label = f"{name}: {said} probability of spam"
    return (
        f"<span>{name}</span><div class='bar half' role='img' aria-label='{label}'>"
        f"<i class='{kind}' style='width:{100 * p_spam:.2f}%'></i></div><b>{said}</b>"
    )


def without_sentence(word: Word, whole: float) -> str:
    """'Without “Pay” the probability of spam falls from 98.7% to 81.0%.'; not escaped."""
    start = f"Without “{word.text}” the probability of spam"
    if percent(word.without) == percent(whole):
        return f"{start} stays at {percent(whole)}."
    turn = "falls" if word.without < whole else "rises"
    return f"{start} {turn} from {percent(whole)} to {percent(word.without)}."


def pending_html(text: str) -> str:
    """The words of a message while the model is asked about them."""
    return _untried_html(text, "Asking the model without each word …")


def unexplained_html(text: str, why: str = "") -> str:
    """The words of a message where the model was asked about them and gave no answer.

    `why` is HTML, escaped by whoever knows it.
    """
    reason = f" ({why})" if why else ""
    return _untried_html(
        text,
        "What each word does is not known: the model was asked without each, and did not"
        f" answer{reason}. Press Classify to ask again.",
    )


def _untried_html(text: str, says: str) -> str:
    return (
        f"<div class='spoken'><p class='words'>{escape(text)}</p><p class='says'>{says}</p></div>"
    )


def words_html(words: Sequence[Word], total: int, lora: bool = True) -> str:
    """The words of a message, each tinted by how far p_spam moves without it.

    `total` is how many words the message has; the later ones may not have been tried. One sentence
    below tells of the word that the visitor points at, at first of the strongest. Where there is a
    `lora` to turn up and down, another says at which strength all this holds.
    """
    if not words:
        return ""
    whole = words[0].without + words[0].weight
    strongest = max(words, key=lambda word: abs(word.weight))
    most = abs(strongest.weight)
    # A message that no word moves much must not look like one that hangs on a word.
    full = max(most, FULL_TINT)
    shown = " ".join(_word(word, whole, full, first=word is strongest) for word in words)
    if most < LEAST_WEIGHT:
        says = "No single word decides: without any one of them the verdict stays as it is."
    else:
        says = without_sentence(strongest, whole)
    held = ", with the adapter at strength 1" if lora else ""
    rest = ""
    if total > len(words):
        rest = f" Only the first {len(words)} of {total:,} words were tried."
    return (
        "<div class='spoken'><p class='words' role='group' aria-label='Words of the message, each"
        f" with what it does; arrow keys move between them'>{shown}</p>"
        # Not live: a screen reader has just read the same sentence at the word itself.
        f"<p class='says'>{escape(says)}</p>"
        "<p class='key'><span><i class='spam'></i>solid line: speaks for spam</span>"
        "<span><i class='ham'></i>dashed line: speaks for ham</span></p>"
        f"<p class='sub small'>Each word is left out in turn and the model asked again{held}. The"
        f" deepest colour stands for a move of {100 * full:.0f} percentage points. Point at a word,"
        f" or reach it with the arrow keys.{rest}</p></div>"
    )


def tint(weight: float, full: float) -> tuple[str, int]:
    """Class and percent of colour for a word of `weight`, where `full` has the full colour."""
    if abs(weight) < LEAST_WEIGHT:
        return "", 0
    return ("spam" if weight > 0 else "ham"), max(8, round(STRONGEST_TINT * abs(weight) / full))


def _word(word: Word, whole: float, full: float, first: bool) -> str:
    kind, strength = tint(word.weight, full)
    says = escape(without_sentence(word, whole))
    style = f" style='--tint:{strength}%'" if kind else ""
    # One stop for the Tab key, however long the message is; the arrow keys go on from there.
    stop = 0 if first else -1
    return (
        f"<span class='word {kind}'{style} tabindex='{stop}' role='note'"
        f" aria-label='{says}'>{escape(word.text)}</span>"
    )


# --- many messages -----------------------------------------------------------------------------


def table_html(verdicts: Sequence[Verdict]) -> str:
    """How many of each class, and the first messages with their verdicts."""
    spam = sum(verdict.label == "spam" for verdict in verdicts)
    many = "1 message" if len(verdicts) == 1 else f"{len(verdicts):,} messages"
    shown = "" if len(verdicts) <= MOST_ROWS else f" The first {MOST_ROWS} are shown."
    rows = "".join(
        f"<tr><td><span class='tag {each.label}'>{each.label}</span></td>"
        f"<td class='n'>{percent(each.p_spam)}</td><td class='text'>{escape(each.text)}</td></tr>"
        for each in verdicts[:MOST_ROWS]
    )
    return (
        f"<p class='count'>{many}: {spam:,} spam, {len(verdicts) - spam:,} ham.{shown}</p>"
        "<div class='scroll tall' tabindex='0' role='region' aria-label='Verdicts'>"
        "<table class='plain'><thead><tr><th scope='col'>verdict</th>"
        "<th scope='col' class='n'>p(spam)</th><th scope='col'>message</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


# --- what the adapter changed ------------------------------------------------------------------


def updates_sentence(updates: Sequence[Update]) -> str:
    """Which layer was changed the most and the least."""
    if not updates:
        return "This run trained no LoRA, so there is no update to look at."
    most, least = (pick(updates, key=lambda each: each.size) for pick in (max, min))
    rank = max(len(each.spectrum) for each in updates)
    return (
        f"Beside each of {len(updates)} frozen weights W stands an update A·B of rank {rank} at"
        f" most. The largest is in {short(most.path)}, {share(most.size)} of the size of its W; the"
        f" smallest in {short(least.path)}, {share(least.size)}."
    )


def updates_html(updates: Sequence[Update]) -> str:
    """Every layer's update as a table: its size, and its singular values as small bars."""
    if not updates:
        return ""
    rows = "".join(
        f"<tr><td class='mono'>{escape(short(each.path))}</td><td class='n'>{share(each.size)}</td>"
        f"<td>{_spectrum(each.spectrum)}</td></tr>"
        for each in updates
    )
    return (
        "<div class='scroll tall' tabindex='0' role='region' aria-label='Updates of all layers'>"
        "<table class='plain'><thead><tr><th scope='col'>layer</th>"
        "<th scope='col' class='n'>size of A·B to W</th>"
        "<th scope='col'>singular values, largest first</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _spectrum(values: Sequence[float]) -> str:
    """Singular values as bars, each to the layer's own largest: the shape counts here."""
    top = max(values, default=0.0) or 1.0
    bars = "".join(
        f"<i style='height:{max(4.0, 100 * value / top):.0f}%'></i>" for value in values[:MOST_BARS]
    )
    numbers = ", ".join(f"{value:.2g}" for value in values[:8])
    more = ", …" if len(values) > 8 else ""
    said = f"aria-label='{numbers}{more}' title='{numbers}{more}'"
    return f"<span class='spectrum' role='img' {said}>{bars}</span>"


def short(path: str) -> str:
    """'trf_blocks.0.att.W_query' -> '0.att.W_query'."""
    return path.removeprefix("trf_blocks.")


def share(size: float) -> str:
    """A size relative to another, with three digits: '12.3%'."""
    return f"{100 * size:.3g}%"
