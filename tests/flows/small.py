"""A whole project of twenty scenes, to be carried out from the command line up to its report, and what that leaves."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from schemas.artifact import RECORD
from schemas.storage import Folder

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "flows.cli"]
STEPS = [
    "source",
    "images",
    "annotations",
    "passport/sam2",
    "passport/mask2former",
    "features/sam2",
    "features/mask2former",
    "segments/ground_truth",
    "segments/mask2former",
    "prompts",
    "samples",
    "vocabulary",
    "certificate/sam2",
    "certificate/mask2former",
    "train",
    "predictions/trained",
    "predictions/untrained",
    "report",
]
SMALL = """
extends = "{quickstart}"
name = "small"
workspace = "{workspace}"
source.train = 16
source.evaluation = 4
source.size = 64
pool.shards = 3
evaluation.max_new_tokens = 6
certificate.pictures = 1
certificate.basis_pictures = 1

[student]
layers = 2
hidden = 32
heads = 2
kv_heads = 2
head_dim = 16
ffn = 64
max_side = 64
mask_dim = 16
mask_width = 16

[train]
steps = 6
batch = 4
micro_batch = 4
checkpoint_every = 2
keep = 10

[resources]
executor = "local"
steps.train.threads = 1
"""


def sailyard(*args: str | Path, within: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    command, variables = [*COMMAND, *map(str, args)], {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, text=True, capture_output=True, timeout=within)


def digests(workspace: str | Path) -> dict[str, str]:
    """name -> SHA-256 of every file, but of the records, which hold times, and of the report, which shows them."""
    folder = Folder(str(workspace))
    names = [name for name in folder.tree() if not name.startswith("report/") and not name.endswith(f"/{RECORD}")]
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in names}
