import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import app
from lora_gpt.config import BadValue
from lora_gpt.service import default_runs

HOUSE = Path(__file__).parents[1]


def test_runs_are_kept_where_the_environment_says(monkeypatch, tmp_path):
    """The page and the command line agree: LORA_GPT_RUNS, else the user's own folder."""
    monkeypatch.setenv("LORA_GPT_RUNS", str(tmp_path / "named"))
    assert default_runs() == tmp_path / "named"
    monkeypatch.delenv("LORA_GPT_RUNS")
    assert default_runs().parts[-2:] == ("lora_gpt", "runs")


def test_threads_wait_without_spinning():
    """Said before torch is loaded, which reads it once; who has said something else is heard."""
    asked = "import lora_gpt, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"

    def told(environment):
        command = [sys.executable, "-c", asked]
        return subprocess.check_output(command, cwd=HOUSE, env=environment, text=True).split()

    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert told(plain) == ["PASSIVE", "False"]
    assert told(plain | {"OMP_WAIT_POLICY": "ACTIVE"}) == ["ACTIVE", "False"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--workers 0", "workers: must be at least 1; got 0"),
        ("--port 80000", "port: must be a whole number from 1 to 65535; got 80000"),
        ("--port 0", "port: must be a whole number from 1 to 65535; got 0"),
        ("--port TAKEN", "port: must be one that is free and that you may use (Address already"),
        ("--host 192.0.2.1", "host: must be an address of this machine (Cannot assign"),
        ("--host nowhere.invalid", "host: must be an address of this machine (nobody knows it)"),
    ],
)
def test_what_cannot_be_served_is_refused(words, says, monkeypatch):
    """Before anything slow is imported: field, rule and value."""
    really = socket.getaddrinfo

    def found(host, *more, **named):
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "nobody knows it")
        return really(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(BadValue) as refusal:
            app.main(words.replace("TAKEN", port).split())
    assert str(refusal.value).startswith(says)


def test_a_port_of_the_environment_is_held_to_the_rule(monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", "http")
    with pytest.raises(BadValue, match="port: must be a whole number from 1 to 65535; got 'http'"):
        app.main([])


@pytest.mark.parametrize("command", [["app.py"], ["-m", "lora_gpt", "runs"]])
def test_interrupted_while_it_starts(command, tmp_path):
    """One line, also where the library that is being imported swallows the interruption."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    pass\n"
        "raise AttributeError('half made')"
    )
    told = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command], cwd=HOUSE, env=told, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (130, "lora_gpt: interrupted\n")


def test_the_page_is_served_where_the_environment_says(tmp_path):
    """One line tells the address, /healthz answers, a worker is made ready before anybody asks for
    one, and SIGTERM ends it all as in a container."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = os.environ | {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    command = [sys.executable, "app.py", "--runs", str(tmp_path)]
    with subprocess.Popen(command, cwd=HOUSE, env=told, stdout=subprocess.PIPE, text=True) as page:
        try:
            line = page.stdout.readline()
            assert line == f"lora_gpt is at http://127.0.0.1:{port}/\n"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
                assert answer.read() == b'{"status":"ok"}'
            if sys.platform == "linux":
                wait_for_worker(page.pid)
        finally:
            page.send_signal(signal.SIGTERM)
        assert page.wait(timeout=30) == 0


def wait_for_worker(page: int) -> None:
    """Return once the process `page` has started another one; fail if it does not."""
    children = Path(f"/proc/{page}/task")
    latest = time.monotonic() + 30
    while time.monotonic() < latest:
        if any(task.joinpath("children").read_text() for task in children.iterdir()):
            return
        time.sleep(0.1)
    raise AssertionError(f"no worker process was started by {page}")
