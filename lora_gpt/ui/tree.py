"""The module tree before and after injection, side by side and line by line, in one `gr.HTML`.

`tree_html` writes the lines from two `Node`s; the script folds, searches and moves with the keys as
the ARIA pattern for trees says. What is open stays open over redraws. Knows nothing of the models.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

import gradio as gr

if TYPE_CHECKING:
    from lora_gpt.core.structure import Node

OPEN_AT_FIRST = ("", "trf_blocks", "trf_blocks.0", "trf_blocks.0.att")

TEMPLATE = """<div class="trees">
<input class="search" type="search" placeholder="Search the tree: W_query, Linear, frozen"
 aria-label="Search the tree" autocomplete="off" spellcheck="false">
<span class="found sub small" role="status"></span>
<div class="lines"></div></div>"""

SCRIPT = r"""
const lines = element.querySelector('.lines'), search = element.querySelector('.search');
const found = element.querySelector('.found');
const open = new Set(props.open);
// While a search is on: what it finds, what that stands in, and what was folded by hand since.
let hits = new Set(), above = new Set();
const hand = new Map();
let chosen = props.chosen;
const rows = (tree) => [...tree.querySelectorAll('.row')];
const parents = (path) => {  // every path above this one, the root '' last
  const above = []; let at = path;
  while (at) { at = at.includes('.') ? at.slice(0, at.lastIndexOf('.')) : ''; above.push(at); }
  return above;
};
const wanted = () => search.value.trim().toLowerCase();
const isOpen = (path) => wanted() ? hand.get(path) ?? above.has(path) : open.has(path);
const kept = (path) => {  // a folder shows what is found in it; where that is nothing, all
  const [parent] = parents(path);
  return !wanted() || hits.has(path) || above.has(path) || hand.has(parent) && !above.has(parent);
};
const look = () => {
  const words = wanted();
  hits = new Set(); above = new Set();
  if (words) for (const row of lines.querySelectorAll('.row:not(.gap)'))
    if (row.textContent.toLowerCase().includes(words)) hits.add(row.dataset.path);
  for (const path of hits) for (const each of parents(path)) above.add(each);
};
const show = () => {
  look();
  for (const row of lines.querySelectorAll('.row')) {
    const path = row.dataset.path, gap = row.classList.contains('gap');
    row.hidden = !kept(path) || !parents(path).every(isOpen);
    row.classList.toggle('hit', hits.has(path) && !gap);
    if (gap) continue;
    if (row.classList.contains('folder')) row.setAttribute('aria-expanded', isOpen(path));
    row.classList.toggle('chosen', path === chosen);
    row.setAttribute('aria-selected', path === chosen);
    row.tabIndex = path === chosen ? 0 : -1;
  }
  for (const tree of lines.querySelectorAll('[role=tree]'))
    if (!rows(tree).some((row) => row.tabIndex === 0 && !row.hidden)) rows(tree)[0].tabIndex = 0;
  found.textContent = !wanted() ? '' : hits.size === 1 ? '1 module' : `${hits.size} modules`;
};
const draw = () => {
  const at = document.activeElement, tree = at && at.closest && at.closest('[role=tree]');
  const here = tree && lines.contains(tree) ? [tree.dataset.side, at.dataset.path] : null;
  lines.innerHTML = props.value || '';
  show();
  if (!here) return;
  const again = rows(lines.querySelector(`[data-side=${here[0]}]`))
    .find((row) => row.dataset.path === here[1]);
  if (again) again.focus();
};
const pick = (row) => {
  chosen = row.dataset.path; show(); row.focus();
  // Not as 'path', which Gradio takes for an uploaded file.
  trigger('pick', {module: chosen, side: row.closest('[role=tree]').dataset.side});
};
const turn = (row, opened) => {
  const path = row.dataset.path;
  if (!row.classList.contains('folder')) return;
  if (wanted()) hand.set(path, opened); else opened ? open.add(path) : open.delete(path);
  show();
};
lines.addEventListener('click', (event) => {
  const row = event.target.closest('.row:not(.gap)'); if (!row) return;
  const opened = isOpen(row.dataset.path);
  if (event.target.closest('.fold')) { turn(row, !opened); row.focus(); return; }
  if (!opened) turn(row, true);
  pick(row);
});
lines.addEventListener('keydown', (event) => {
  const row = event.target.closest('.row'); if (!row) return;
  const shown = rows(row.closest('[role=tree]'))
    .filter((each) => !each.hidden && !each.classList.contains('gap'));
  const at = shown.indexOf(row), folder = row.classList.contains('folder');
  const opened = folder && isOpen(row.dataset.path);
  const go = (to) => { if (to) { row.tabIndex = -1; to.tabIndex = 0; to.focus(); } };
  const keys = {
    ArrowDown: () => go(shown[at + 1]), ArrowUp: () => go(shown[at - 1]),
    Home: () => go(shown[0]), End: () => go(shown[shown.length - 1]),
    ArrowRight: () => opened || !folder ? go(shown[at + 1]) : turn(row, true),
    ArrowLeft: () => opened ? turn(row, false)
      : go(shown.find((each) => each.dataset.path === parents(row.dataset.path)[0])),
    Enter: () => { if (!opened) turn(row, true); pick(row); },
    ' ': () => turn(row, !opened),
  };
  if (!keys[event.key]) return;
  event.preventDefault(); keys[event.key]();
});
// The same line on both sides lights up together.
lines.addEventListener('mouseover', (event) => {
  const row = event.target.closest('.row');
  for (const each of lines.querySelectorAll('.row'))
    each.classList.toggle('twin', Boolean(row) && each.dataset.path === row.dataset.path);
});
lines.addEventListener('mouseleave', () => {
  for (const each of lines.querySelectorAll('.twin')) each.classList.remove('twin');
});
search.addEventListener('input', () => { hand.clear(); show(); });
watch('value', draw); draw();
"""


def tree_view(value: str, chosen: str) -> gr.HTML:
    """The component; it triggers `pick` with {module: path, side: 'before' or 'after'}."""
    return gr.HTML(
        value=value,
        html_template=TEMPLATE,
        js_on_load=SCRIPT,
        open=list(OPEN_AT_FIRST),
        chosen=chosen,
        elem_id="trees",
    )


Pair = tuple["Node | None", "Node | None", int]
"""A line: the module before, the module after, and how deep it stands."""


def paired(before: "Node | None", after: "Node | None", depth: int = 0) -> Iterator[Pair]:
    """The lines of both trees in the order of the one after, each beside its twin or a gap."""
    yield before, after, depth
    old = {child.name: child for child in (before.children if before else ())}
    new = {child.name: child for child in (after.children if after else ())}
    for name in [*new, *(each for each in old if each not in new)]:
        yield from paired(old.get(name), new.get(name), depth + 1)


def tree_html(before: "Node", after: "Node") -> str:
    """Both trees as two cards. Everything in them is escaped."""
    pairs = list(paired(before, after))
    left = [line_html(old, old, depth, new) for old, new, depth in pairs]
    right = [line_html(new, old, depth, old) for old, new, depth in pairs]
    return f'<div class="two">{_card("Before", left)}{_card("After", right)}</div>'


def _card(side: str, lines: Sequence[str]) -> str:
    return (
        f'<div class="card"><h3>{side}</h3><div class="scroll"><div class="tree" role="tree"'
        f' data-side="{side.lower()}" aria-label="The modules {side.lower()} injection">'
        f"{''.join(lines)}</div></div></div>"
    )


def line_html(node: "Node | None", before: "Node | None", depth: int, twin: "Node | None") -> str:
    """One line; where `node` is missing, a gap as high as the line of its `twin`."""
    if node is None:
        assert twin is not None
        path = escape(twin.path)
        return f'<div class="row gap" data-path="{path}" aria-hidden="true">&nbsp;</div>'
    folder = bool(node.children)
    is_after = node is not before
    kinds = [name for name, wanted in (("folder", folder), ("changed", is_after)) if wanted]
    if "changed" in kinds and node.change == "unchanged":
        kinds.remove("changed")
    elif is_after and node.kind == "head":
        kinds.append("head")
    fold = (
        '<span class="fold" aria-hidden="true"></span>' if folder else '<span class="leaf"></span>'
    )
    count = f"{node.parameters:,}" if node.parameters else ""
    expanded = ' aria-expanded="false"' if folder else ""
    return (
        f'<div class="row {" ".join(kinds)}" role="treeitem" aria-level="{depth + 1}"{expanded}'
        f' data-path="{escape(node.path)}" style="--d:{depth}" tabindex="-1">{fold}'
        f"<span>{_name(node)}</span>{badges(node, before if is_after else None)}"
        f"<em>{count}</em></div>"
    )


def _name(node: "Node") -> str:
    name = f"<b>{escape(node.label)}</b> " if node.label else ""
    return f"{name}{escape(node.type)}"


def badges(node: "Node", before: "Node | None") -> str:
    """What is told beside the name. `before` is None on the side before injection."""
    told = []
    if node.repeat > 1:
        # Read out as part of the line; the card of the module says it for all to see.
        meant = f"{node.repeat} blocks of this shape; the counts are those of one"
        said = f'role="img" aria-label="{meant}" title="{meant}"'
        told.append(f'<span class="tag" {said}>× {node.repeat}</span>')
    if before is None and node.change == "unchanged" and node.kind != "frozen":
        return "".join(told)
    if node.kind == "head":
        outputs, inputs = node.shapes[0][1]
        told.append(f'<span class="tag h">new {inputs:,} → {outputs}</span>')
    elif node.kind == "lora":
        told.append(f'<span class="tag l">new, rank {node.shapes[0][1][1]}</span>')
    elif node.kind == "frozen" and not node.children:
        told.append('<span class="tag">frozen</span>')
    elif node.kind == "mixed" and before and node.parameters > before.parameters:
        told.append(f'<span class="tag l">+{node.parameters - before.parameters:,}</span>')
    return "".join(told)
