"""What all tests share: no network, and skips that may not pass unseen in CI."""

import os
import socket
from pathlib import Path

import pytest

import lora_gpt  # noqa: F401, before torch: it says how threads wait, as it does for the app

MAY_BE_SKIPPED = ("needs a CUDA device", "root reads every file", "no oneDNN layout for 16 bits")
"""Reasons for which a test may be skipped even in CI: it has no GPU, may run as root, and on a
processor without units for bfloat16."""


@pytest.fixture(autouse=True)
def _only_this_machine(monkeypatch):
    """Any attempt to reach another machine fails at once, instead of making a test depend on it."""
    real = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            if not (host.startswith("127.") or host in ("::1", "localhost", "0.0.0.0")):
                raise OSError(f"tests reach this machine alone; got {host}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data; the test is skipped where there is none."""
    folder = os.environ.get("LORA_GPT_DATA")
    if not folder:
        pytest.skip("LORA_GPT_DATA is not set: the real SMS Spam Collection is not here")
    return Path(folder)


def pytest_terminal_summary(terminalreporter):
    """With CI set, say which skips are failures."""
    for report in _forbidden(terminalreporter):
        terminalreporter.write_line(f"SKIPPED IN CI {report.nodeid}: {_reason(report)}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """With CI set, a skip for want of something that CI must have fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _forbidden(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _forbidden(reporter):
    if not os.environ.get("CI"):
        return []
    skipped = reporter.stats.get("skipped", [])
    return [each for each in skipped if not any(m in _reason(each) for m in MAY_BE_SKIPPED)]


def _reason(report):
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
