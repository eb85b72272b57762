"""What many tests stand on: a seeded generator, and an empty store on the local disk and on a real S3 server."""

import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from schemas.storage import Folder


def pytest_configure(config: pytest.Config) -> None:
    """A shell that starts the tests in the background has them ignore SIGINT, and so would all that they interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """URL of a bucket on an S3 server on loopback; credentials and endpoint stand in the environment, as a user's would."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="sailyard")
        yield "s3://sailyard"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path))
    return Folder(f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray on this machine, whose workers can import the stages that tests define."""
    import ray

    from stages.base import Resources
    from stages.executor import start_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        start_ray(Resources(workers=3))
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the API of a real Prefect server with a home of its own; this process, and those it starts, talk to it."""
    from flows.server import send_what_is_left, wait_until_ready

    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    variables = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with pytest.MonkeyPatch.context() as patch, (home / "server.log").open("wb") as log:
        for name, value in variables.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(url)
            patch.setenv("PREFECT_API_URL", url)
            from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME, temporary_settings

            # To stop the heart of a flow takes up to a second.
            with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                yield url
        finally:
            send_what_is_left()
            server.terminate()
            server.wait(30)


@pytest.fixture
def workspace(tmp_path) -> Folder:
    """An empty workspace on the local disk."""
    return Folder(str(tmp_path / "workspace"))
