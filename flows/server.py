"""A Prefect server for the length of one command, for whoever has none running.

It is the server that Prefect itself would start in such a case, on the same database, with two differences: it stands in a
session of its own, because a Ctrl-C that reaches the server first leaves the run waiting for minutes for an answer; and it
ends when its parent does, however that ends, because the pipe on its standard input is closed then.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import StageFailed

SECONDS_TO_START, SECONDS_TO_END = 180.0, 5.0


@contextmanager
def temporary_server() -> Iterator[str]:
    """URL of its API; it may still be starting, see `wait_until_ready`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        command = [sys.executable, "-m", "flows.server", str(listening.fileno())]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listening.fileno()], start_new_session=True)
    try:
        yield url
    finally:
        send_what_is_left()
        server.terminate()
        try:
            server.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(url: str) -> None:
    """The first start makes the database and takes its time."""
    import httpx

    last = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < last:
        try:
            if httpx.get(f"{url}/health", timeout=SECONDS_TO_START).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise StageFailed("the temporary Prefect server does not answer", url, "Run again, or start one: prefect server start.")


def send_what_is_left() -> None:
    """Prefect sends logs and events behind the back of a run, and would wait a minute for a server that is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=SECONDS_TO_END)
    EventsWorker.drain_all(timeout=SECONDS_TO_END)


def _serve(descriptor: int) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_parent, daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on"))
    server.run([socket.socket(fileno=descriptor)])


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
