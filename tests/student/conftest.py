"""What the student's tests share: a small store of everything it is trained on."""

from pathlib import Path

import numpy as np
import pytest

from schemas.storage import Folder
from tests.student.stores import Store, write_store


@pytest.fixture
def small_store(tmp_path: Path, rng: np.random.Generator) -> Store:
    """Eight pictures in two shards, three dialogues each; the last picture of either shard is for evaluation."""
    return write_store(Folder(str(tmp_path / "store")), rng)
