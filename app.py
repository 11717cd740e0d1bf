"""Serve the page: parse arguments, build, launch.

Host and port also come from GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, the runs from LORA_GPT_RUNS.
"""

import argparse
import signal
import sys
from pathlib import Path


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


def main(argv: list[str] | None = None) -> None:
    """Serve until interrupted."""
    options = arguments().parse_args(argv)
    # Only now: --help answers at once, and a worker process that starts here imports neither.
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
    main()
