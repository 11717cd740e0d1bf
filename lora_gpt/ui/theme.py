"""How the page looks: Gradio's own widgets in the colours of `assets/style.css`.

Colours are CSS variables that exist for both themes, so light and dark are told apart in one place.
"""

from pathlib import Path
from typing import Any

import gradio as gr

STYLE = Path(__file__).parents[2] / "assets" / "style.css"
FONTS = ("system-ui", "sans-serif")
MONOSPACED = ("ui-monospace", "Menlo", "Consolas", "monospace")
RADIUS = "var(--r)"

COLOURS = {
    "body_background_fill": "var(--bg)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--soft)",
    "background_fill_primary": "var(--card)",
    "background_fill_secondary": "var(--bg)",
    "block_background_fill": "transparent",
    "block_border_color": "transparent",
    "block_label_background_fill": "transparent",
    "block_label_border_color": "transparent",
    "block_label_text_color": "var(--soft)",
    "block_title_text_color": "var(--ink)",
    "block_info_text_color": "var(--soft)",
    "panel_background_fill": "transparent",
    "panel_border_color": "transparent",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--fill)",
    "border_color_accent_subdued": "var(--line)",
    "color_accent_soft": "var(--lora-bg)",
    "link_text_color": "var(--head)",
    "link_text_color_active": "var(--head)",
    "link_text_color_hover": "var(--head)",
    "link_text_color_visited": "var(--head)",
    "input_background_fill": "var(--card)",
    "input_background_fill_focus": "var(--card)",
    "input_border_color": "var(--edge)",
    "input_border_color_focus": "var(--lora)",
    "input_placeholder_color": "var(--soft)",
    "slider_color": "var(--fill)",
    "loader_color": "var(--fill)",
    "stat_background_fill": "var(--fill)",
    "checkbox_background_color": "var(--card)",
    "checkbox_background_color_focus": "var(--card)",
    "checkbox_background_color_hover": "var(--card)",
    "checkbox_background_color_selected": "var(--tick)",
    "checkbox_border_color": "var(--soft)",
    "checkbox_border_color_focus": "var(--lora)",
    "checkbox_border_color_hover": "var(--lora)",
    "checkbox_border_color_selected": "var(--lora)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_hover": "transparent",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_border_color": "transparent",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--ink)",
    "button_primary_background_fill": "var(--fill)",
    "button_primary_background_fill_hover": "var(--fill-hover)",
    "button_primary_border_color": "var(--fill)",
    "button_primary_text_color": "#1c2430",
    "button_primary_text_color_hover": "#1c2430",
    "button_secondary_background_fill": "transparent",
    "button_secondary_background_fill_hover": "var(--frozen-bg)",
    "button_secondary_border_color": "var(--edge)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_text_color_hover": "var(--ink)",
    "button_cancel_background_fill": "transparent",
    "button_cancel_background_fill_hover": "var(--frozen-bg)",
    "button_cancel_border_color": "var(--spam)",
    "button_cancel_text_color": "var(--spam)",
    "button_cancel_text_color_hover": "var(--spam)",
    "error_background_fill": "var(--card)",
    "error_border_color": "var(--spam)",
    "error_text_color": "var(--spam)",
    "table_border_color": "var(--line)",
    "table_even_background_fill": "var(--card)",
    "table_odd_background_fill": "var(--card)",
    "code_background_fill": "var(--bg)",
    "accordion_text_color": "var(--ink)",
}
"""Gradio's theme variables, the same words in both themes: the page's own variables change."""

SHAPES = {  # and what has one value for both themes
    "color_accent": "var(--lora)",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_radius": "0px",  # it would cut the corners of the field inside
    "block_label_text_size": "13px",
    "block_title_text_size": "13px",
    "block_title_text_weight": "600",
    "block_info_text_size": "12px",
    "container_radius": RADIUS,
    "input_radius": "8px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "input_border_width": "1px",
    "checkbox_label_padding": "2px 0",
    "checkbox_label_shadow": "none",
    "checkbox_shadow": "none",
    "checkbox_border_radius": "4px",
    "button_large_radius": "8px",
    "button_medium_radius": "8px",
    "button_small_radius": "8px",
    "button_primary_shadow": "none",
    "button_primary_shadow_hover": "none",
    "button_primary_shadow_active": "none",
    "button_secondary_shadow": "none",
    "button_secondary_shadow_hover": "none",
    "button_secondary_shadow_active": "none",
    "shadow_drop": "none",
    "shadow_drop_lg": "none",
    "shadow_spread": "0px",
    "layout_gap": "16px",
    "form_gap_width": "14px",
}


def theme() -> gr.Theme:
    """The page's theme: system fonts, nothing loaded from elsewhere."""
    base = gr.themes.Base(font=list(FONTS), font_mono=list(MONOSPACED))
    dark = {f"{name}_dark": value for name, value in COLOURS.items()}
    return base.set(**COLOURS, **dark, **SHAPES)


LAUNCH: dict[str, Any] = {
    "theme": theme(),
    "css_paths": [STYLE, STYLE.with_name("train.css")],
    "head": '<meta name="color-scheme" content="light dark">',
    "footer_links": ["api"],
    "run_history": False,
    "ssr_mode": False,  # our charts and trees are made in the browser
    "show_error": True,
}
"""Arguments of `Blocks.launch` that the look and the privacy of the page need."""
