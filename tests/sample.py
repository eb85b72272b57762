"""The real pictures and published files that some tests want: `SAILYARD_SAMPLE_DATA`, or `../shared/data`."""

import os
from pathlib import Path

import pytest

SAMPLE_DATA = Path(os.environ.get("SAILYARD_SAMPLE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def sample_of(name: str) -> Path:
    """The folder of that name; the test that asks for it is skipped where it is not."""
    folder = SAMPLE_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the sample data are not at {folder}")
    return folder
