"""The README's pictures, taken from the running page: every tab, light and dark, desk and phone.

Serves the page over the bundled sample runs, opens it in headless Chromium and writes one small PNG
for each picture. Needs playwright and Chromium (on the PATH, or its file in CHROMIUM). Knows where
a tab is drawn, nothing of how.
"""

import argparse
import io
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "assets" / "pictures"
SIZES = {"desk": (1280, 860), "phone": (390, 844)}
THEMES = ("light", "dark")
TABS = {
    "Model": "#model-stats strong",
    "Train": "#train-result table",
    "Compare": "#costs table",
    "Classify": "#changes .plot",
}
"""The tabs, and what stands in each once it is drawn."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
COLOURS = 256
"""Of a picture: the page has few, and a palette makes the file a third as large."""


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """The page's address, while it is served over the bundled samples."""
    from lora_gpt.service import Service
    from lora_gpt.ui.build import build, serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = Service(runs)
    demo = build(service)
    try:
        yield serve(demo, server_name="127.0.0.1", server_port=port).rstrip("/")
    finally:
        demo.close()
        service.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium. Raises FileNotFoundError where there is none."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        raise FileNotFoundError("Chromium must be on the PATH, or its file named in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def small(png: bytes) -> bytes:
    """The same picture with few colours."""
    from PIL import Image

    held = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # The octree keeps small patches of a colour, such as the legend's, where the median does not.
    few = picture.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(held, "PNG", optimize=True)
    return held.getvalue()


def pictures(url: str, browser: Any, run: str) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of every picture; the Train tab shows the finished `run`."""
    for size, (width, height) in SIZES.items():
        for theme in THEMES:
            context = browser.new_context(
                viewport={"width": width, "height": height}, reduced_motion="reduce"
            )
            page = context.new_page()
            for tab, drawn in TABS.items():
                # An address with a run opens the Train tab by itself.
                shown = f"&run={run}" if tab == "Train" else ""
                page.goto(f"{url}/?__theme={theme}{shown}")
                page.get_by_role("tab", name=tab, exact=True).click()
                page.locator(drawn).first.wait_for(timeout=60_000)
                # Curves and counts settle, and the mouse leaves what it pressed.
                page.mouse.move(0, 0)
                page.wait_for_timeout(1500)
                yield f"{tab.lower()}-{theme}-{size}.png", small(page.screenshot())
            context.close()


def main(argv: list[str] | None = None) -> None:
    """Take all pictures and say how large they are."""
    parser = argparse.ArgumentParser(description="Take the README's pictures.")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--run", default="lora-rank-8", help="finished run in the Train tab")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs, served(Path(runs)) as url, chromium() as browser:
        for name, png in pictures(url, browser, options.run):
            (options.out / name).write_bytes(png)
            print(f"{options.out / name}: {len(png) / 1000:,.0f} kB", flush=True)


if __name__ == "__main__":
    # The script lies beside the package, not in it.
    sys.path.insert(0, str(ROOT))
    main()
