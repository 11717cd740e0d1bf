"""Serve the page: parse arguments, build, launch.

Host and port also come from GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, the runs from LORA_GPT_RUNS.
"""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

from lora_gpt.interrupts import INTERRUPTED, starting
from lora_gpt.knobs import BadValue


def arguments() -> argparse.ArgumentParser:
    """The options of the page; defaults that are None are left to Gradio's environment."""
    parser = argparse.ArgumentParser(description="Serve the page of lora_gpt.")
    parser.add_argument("--host", help="address to listen on; GRADIO_SERVER_NAME, else 127.0.0.1")
    parser.add_argument(
        "--port", type=int, help="GRADIO_SERVER_PORT, else the first free from 7860"
    )
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs; LORA_GPT_RUNS, else your data"
    )
    parser.add_argument("--workers", type=int, default=1, help="trainings at the same time (1)")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse in a sentence what could not be served. Raises BadValue."""
    if options.workers < 1:
        raise BadValue("workers", "must be at least 1", options.workers)
    given = options.port if options.port is not None else os.environ.get("GRADIO_SERVER_PORT")
    if given is not None and not (str(given).isdecimal() and 1 <= int(given) <= 65535):
        raise BadValue("port", "must be a whole number from 1 to 65535", given)
    host = options.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    for field, rule, port in (
        ("host", "must be an address of this machine", 0),
        ("port", "must be one that is free and that you may use", options.port or 0),
    ):
        try:
            places = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
            kind, *_, address = places[0]
            with socket.socket(kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            got = getattr(options, field) or host
            raise BadValue(field, f"{rule} ({error.strerror})", got) from error


def main(argv: list[str] | None = None) -> None:
    """Serve until interrupted. Raises BadValue for options that cannot be, OSError where no port is
    free."""
    options = arguments().parse_args(argv)
    check(options)
    # Only now: --help answers at once, and a worker process that starts here imports neither.
    with starting():
        from lora_gpt.service import Service, default_runs
        from lora_gpt.ui.build import build, serve

    # A container is stopped with SIGTERM, which would otherwise leave the workers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    service = Service(options.runs or default_runs(), workers=options.workers)
    try:
        demo = build(service)
        address = serve(demo, server_name=options.host, server_port=options.port)
        print(f"lora_gpt is at {address}", flush=True)
        service.jobs.warm_up()  # the first training should not wait for torch
        demo.block_thread()
    finally:
        service.close()


if __name__ == "__main__":
    try:
        main()
    except (BadValue, OSError) as refusal:
        print(f"lora_gpt: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before it was served
        print("lora_gpt: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
