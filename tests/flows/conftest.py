"""Projects small enough to be carried out in a test."""

from pathlib import Path

import pytest

from tests.flows.small import SMALL, sailyard

MICRO = """
extends = "{quickstart}"
name = "micro"
workspace = "{workspace}"
source.train = 6
source.evaluation = 2
pool.shards = 2
train.steps = 2
evaluation.max_new_tokens = 4
certificate.pictures = 1
certificate.basis_pictures = 1

[resources]
executor = "local"
"""
QUICKSTART = Path(__file__).parents[2] / "flows" / "configs" / "quickstart.toml"
LIGHT = ["source", "images", "annotations", "segments/ground_truth", "prompts", "samples", "vocabulary"]


@pytest.fixture
def micro(tmp_path) -> Path:
    """The TOML of the quickstart at a size of eight pictures; `LIGHT` are its steps that need no network."""
    config = tmp_path / "micro.toml"
    config.write_text(MICRO.format(quickstart=QUICKSTART, workspace=tmp_path / "runs"))
    return config


@pytest.fixture(scope="session")
def unbroken(prefect_server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TOML of a project that has been carried out from the command line in one go; its workspace `runs` lies beside it."""
    folder = tmp_path_factory.mktemp("unbroken")
    config = folder / "small.toml"
    config.write_text(SMALL.format(quickstart=QUICKSTART, workspace=folder / "runs"))
    done = sailyard("run", config)
    assert done.returncode == 0, done.stderr
    return config
