"""Values -> plotly figures as plain dicts {data, layout, description}.

Pure functions: no gradio, no plotly objects. Every chart looks the same: light grid, no frame, no
legend box, lines labelled at their ends, training solid and validation dashed.
"""

from lora_gpt.plots.classification import strength_curve, update_sizes
from lora_gpt.plots.comparison import RunPoint, fraction_curves, measured_runs
from lora_gpt.plots.style import Figure
from lora_gpt.plots.training import Curve, accuracy_curve, lengths, loss_curve

__all__ = [
    "Curve",
    "Figure",
    "RunPoint",
    "accuracy_curve",
    "fraction_curves",
    "lengths",
    "loss_curve",
    "measured_runs",
    "strength_curve",
    "update_sizes",
]
