"""Our chart: a `gr.HTML` that hands a figure dict to Plotly, from the installed package, offline.

`gr.Plot` is mounted anew at every value and so loses the zoom; this one stays. Colours are named by
CSS variable ("var(--fill)", or "var(--fill) / 0.2" for a tint) and resolved on the page, so a chart
changes with the theme. Knows nothing of what is drawn.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

TEMPLATE = """<figure class="chart" role="img" aria-label="{label}. {empty}"
 data-label="{label}">
<div class="plot" style="height:{height}px" hidden></div>
<p class="empty" style="min-height:{height}px">{empty}</p></figure>"""

SCRIPT = r"""
const figure = element.querySelector('.chart'), plot = element.querySelector('.plot');
const empty = element.querySelector('.empty'), label = figure.dataset.label;
const NAMED = /^var\((--[\w-]+)\)(?:\s*\/\s*([\d.]+))?$/;
const colour = (text) => text.replace(NAMED, (_, name, alpha) => {
  const found = getComputedStyle(figure).getPropertyValue(name).trim();
  if (!alpha) return found;
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(found.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
});
const resolved = (value) => typeof value === 'string' ? colour(value)
  : Array.isArray(value) ? value.map(resolved)
  : value && typeof value === 'object'
    ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, resolved(each)]))
    : value;
const still = matchMedia('(pointer: coarse)').matches;  // a finger on a chart scrolls the page
// Plotly takes a processor a second or more: it is loaded for the first figure, not before.
const load = () => window.plotlyLoads ??= new Promise((loaded) => {
  const script = document.createElement('script');
  script.src = PLOTLY_JS;
  script.onload = loaded;
  script.onerror = () => { script.remove(); window.plotlyLoads = undefined; };
  document.head.append(script);
});
let width = 0;
const draw = () => {
  const value = props.value, some = Boolean(value && value.data);
  const drawn = some && Boolean(window.Plotly);
  if (some && !drawn) load().then(draw);
  plot.hidden = !drawn; empty.hidden = drawn;
  figure.setAttribute('aria-label', drawn ? value.description || label
    : `${label}. ${empty.textContent}`);
  if (!drawn || !figure.clientWidth) return;
  width = figure.clientWidth;
  const fresh = resolved(JSON.parse(JSON.stringify(value)));
  const layout = {...fresh.layout, uirevision: 'keep', autosize: true};
  if (still) layout.dragmode = false;
  Plotly.react(plot, fresh.data, layout, {responsive: false, displayModeBar: false});
};
watch('value', draw); draw();
// A tab that was closed has no width, and neither does Plotly hear of its opening.
new ResizeObserver(() => { if (figure.clientWidth && figure.clientWidth !== width) draw(); })
  .observe(figure);
const themes = new MutationObserver(() => element.isConnected ? draw() : themes.disconnect());
themes.observe(document.body, {attributes: true, attributeFilter: ['class']});
"""


def chart(
    label: str, height: int = 260, empty: str = "Nothing to draw yet.", **more: Any
) -> gr.HTML:
    """A chart whose value is a figure dict of `plots`, or None for the sentence `empty`.

    `label` tells screen readers what is drawn, unless the figure has a `description` of its own;
    where nothing is drawn they hear `empty` after it.
    """
    gr.set_static_paths([PLOTLY_JS])
    return gr.HTML(
        value=None,
        html_template=TEMPLATE.format(label=escape(label), height=height, empty=escape(empty)),
        js_on_load=SCRIPT.replace(
            "PLOTLY_JS", json.dumps(f"gradio_api/file={PLOTLY_JS.as_posix()}")
        ),
        **more,
    )
