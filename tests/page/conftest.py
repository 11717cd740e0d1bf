"""One served page and one Chromium for all page tests; a clean visit for each.

`app` is the page: its address and the service behind it. `page` is a tab of a browser that has
nothing stored, and fails its test on anything that goes wrong unseen: an error in the console, a
script's error, or a request that leaves this machine. `visit` opens the page in it, at a tab.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

HERE = Path(__file__).parent
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"),
    # No other machine is found. To refuse requests by hand would send each through Python.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
PATIENCE = 60_000
"""Milliseconds until an expectation fails: a busy machine is slow, not wrong."""
LOOPBACK = ("127.0.0.1", "localhost")
LOCAL = ("data", "blob", "about")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@dataclass(frozen=True)
class App:
    """The page as it is served to the tests."""

    url: str
    service: Any


def pytest_collection_modifyitems(items):
    """Everything in this folder drives the page."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.page)


def chromium() -> str:
    """The browser's path. The test is skipped without one, and fails where CI is set."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if found and Path(found).is_file():
        return found
    reason = "no Chromium: put chromium on the PATH or its file in CHROMIUM"
    if os.environ.get("CI"):
        pytest.fail(reason)
    return pytest.skip(reason)


@pytest.fixture(scope="session")
def app(tmp_path_factory) -> Iterator[App]:
    """The page over an empty folder of runs and the bundled samples, at a free port."""
    chromium()
    from lora_gpt.service import Service
    from lora_gpt.ui.build import build, serve

    service = Service(tmp_path_factory.mktemp("runs"))
    demo = build(service)
    try:
        url = serve(demo, server_name="127.0.0.1", server_port=_free_port())
        service.jobs.warm_up()
        yield App(url.rstrip("/"), service)
    finally:
        demo.close()
        service.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Any]:
    """Chromium without a window, as a Playwright context on a profile: what it compiled of the
    page's scripts is kept from visit to visit, which without one takes it two seconds each time."""
    path, profile = chromium(), tmp_path_factory.mktemp("profile")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        launch = playwright.chromium.launch_persistent_context
        launched = launch(profile, executable_path=path, args=FLAGS)
        launched.set_default_timeout(PATIENCE)
        yield launched
        launched.close()


@pytest.fixture
def new_page(app, browser) -> Iterator[Callable[..., Any]]:
    """Makes pages of a browser that has stored nothing of an earlier test, each watched."""
    faults: list[str] = []
    watches = {
        "request": lambda request: _judge(request.url, faults),
        "console": lambda told: _heard(told, faults),
        "weberror": lambda told: faults.append(f"script error: {told.error}"),
    }
    for event, watch in watches.items():
        browser.on(event, watch)

    def make(viewport: dict[str, int] = DESK, color_scheme: str = "light") -> Any:
        page = browser.new_page()
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=color_scheme)
        return page

    first = browser.new_page()
    asked = {"origin": app.url, "storageTypes": "cookies,local_storage,indexeddb"}
    browser.new_cdp_session(first).send("Storage.clearDataForOrigin", asked)
    first.close()
    yield make
    for page in browser.pages:
        page.close()
    for event, watch in watches.items():
        browser.remove_listener(event, watch)
    assert not faults, "the page went wrong:\n" + "\n".join(faults)


def _judge(url: str, faults: list[str]) -> None:
    """Record a request that would leave this machine."""
    address = urlsplit(url)
    if address.scheme not in LOCAL and address.hostname not in LOOPBACK:
        faults.append(f"request to the outside: {url}")


def _heard(told: Any, faults: list[str]) -> None:
    if told.type == "error":
        faults.append(f"console error: {told.text} ({told.location.get('url', '')})")


@pytest.fixture
def page(new_page) -> Any:
    """A page on a desk, in the light theme; nothing is open in it yet."""
    return new_page()


@pytest.fixture
def phone(new_page) -> Any:
    """As `page`, on a screen as small as a phone's."""
    return new_page(viewport=PHONE)


@pytest.fixture
def visit(app, page) -> Callable[..., Any]:
    """`visit("Train")` opens the page at that tab and returns it; `query` goes to the address."""

    def go(tab: str = "Model", query: str = "", on: Any = None) -> Any:
        opened = on or page
        opened.goto(app.url + (f"/?{query}" if query else "/"))
        opened.get_by_role("tab", name=tab, exact=True).click()
        return opened

    return go


@pytest.fixture
def width_of() -> Callable[[Any], int]:
    """How far the page is wider than its window, in pixels: 0 where nothing has to be scrolled."""

    def measure(page: Any) -> int:
        root = "document.scrollingElement"
        return page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")

    return measure
