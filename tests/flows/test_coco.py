"""The DAG of coco.toml on the real photographs that have expressions: every picture comes through, and nothing said of one
is lost without a line."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from schemas.artifact import Artifact
from schemas.storage import Folder
from tests.flows.conftest import QUICKSTART
from tests.flows.photographs import as_reference, chosen_pictures
from tests.flows.small import sailyard
from tests.sample import sample_of

PICTURES, EXPRESSIONS = 51, 125
FEATURES = ["features/sam2", "features/mask2former"]
PER_PICTURE = ["images", "annotations", *FEATURES, "segments/ground_truth", "segments/mask2former", "prompts"]
CONFIG = """
extends = "{coco}"
name = "photographs"
workspace = "{workspace}"
pool.shards = 4
teachers.sam2.weights = "random"
vocabulary.size = 512
evaluation.max_new_tokens = 8
certificate.pictures = 1
certificate.basis_pictures = 2

[source]
images = ["{pictures}"]
instances = ["{sample}/instances.json", "{sample}/instances_person_only.json"]
panoptic = ["{sample}/panoptic.json"]
refs = ["{refs}"]

[teachers.mask2former]
weights = "random"

[features.mask2former]
codec = "pca8-int8"

[student]
layers = 2
hidden = 32
heads = 2
kv_heads = 2
head_dim = 16
ffn = 64
max_side = 128
mask_dim = 16
mask_width = 16
max_length = 1024

[train]
steps = 4
batch = 4
precision = "float32"
readers = 1

[resources]
executor = "local"
workers = 1

[resources.steps]
images = {{ beam_options = [] }}
passport = {{ device = "cpu", threads = 1 }}
certificate = {{ device = "cpu", threads = 1 }}
features = {{ device = "cpu", gpus = 0.0, threads = 1 }}
"segments/mask2former" = {{ device = "cpu", gpus = 0.0, threads = 1 }}
train = {{ device = "cpu", gpus = 0.0, threads = 1 }}
predictions = {{ device = "cpu", gpus = 0.0, threads = 1 }}
"""


@pytest.fixture(scope="module")
def sample() -> Path:
    return sample_of("coco")


@pytest.fixture(scope="module")
def records(sample: Path) -> list[dict[str, Any]]:
    """The expressions of the sample; those of every other picture are given to training."""
    found = [json.loads(line) for line in (sample / "refs.jsonl").read_text().splitlines()]
    taught = set(sorted({record["image_id"] for record in found})[::2])
    return [record | ({"split": "train"} if record["image_id"] in taught else {}) for record in found]


@pytest.fixture(scope="module")
def printed(prefect_server, sample, records, tmp_path_factory) -> dict[str, Any]:
    """What the run ends with."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "refs.p").write_bytes(pickle.dumps([as_reference(record) for record in records], 0))
    pictures = chosen_pictures(sample, (record["image_id"] for record in records), folder / "images")
    config = folder / "photographs.toml"
    places = {"workspace": folder / "runs", "pictures": pictures, "refs": folder / "refs.p"}
    config.write_text(CONFIG.format(coco=QUICKSTART.with_name("coco.toml"), sample=sample, **places))
    done = sailyard("run", config, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(printed: dict[str, Any], step: str) -> list[dict[str, Any]]:
    made = Artifact.sealed(Folder(printed["artifacts"][step]))
    return [row for table in made.iterate() for row in table.to_pylist()]


@pytest.mark.sample
def test_every_photograph_comes_through_every_table(printed):
    for step in PER_PICTURE:
        record = Artifact.sealed(Folder(printed["artifacts"][step])).record()
        unsaid = [line for line in record.failures if "the pool has no picture" not in line]
        assert (step, record.rows, record.failed, unsaid) == (step, PICTURES, 0, [])
    for step in FEATURES:
        assert all(row["feature"] is not None for row in rows(printed, step))


@pytest.mark.sample
def test_every_expression_is_asked_or_has_a_line(printed, records):
    turns = [turn for row in rows(printed, "samples") if row["task"] == "segmentation" for turn in row["turns"]]
    faults = [fault for row in rows(printed, "annotations") for fault in row["faults"]]
    assert len(records) == EXPRESSIONS == len(turns) + len(faults)
    assert all(fault.startswith("unknown object: ") for fault in faults)
    asked = "\n".join(turn["question"] for turn in turns)
    named = "\n".join(faults)
    for record in records:
        known = record["no_target"] or record["mask_source"]
        assert (record["sentence"].lower().removesuffix(".") in asked) if known else (f"reference {record['ref_id']} " in named)


@pytest.mark.sample
def test_the_student_is_taught_asked_and_judged(printed, records):
    usable = [record for record in records if record["no_target"] or record["mask_source"]]
    evaluated = sum(record["split"] != "train" for record in usable)
    assert 0 < evaluated < len(usable)
    for weights in ("trained", "untrained"):
        assert len(rows(printed, f"predictions/{weights}")) == evaluated
        scores = printed["metrics"][weights]["segmentation"]
        assert scores["count"] == evaluated
        assert 0 <= scores["ciou"] <= 1
        assert 0 <= scores["giou"] <= 1
    summary = Artifact.sealed(Folder(printed["artifacts"]["train"])).record().summary
    assert summary["steps"] == 4
    assert summary["shown"]["dropped"] == {}
    assert b"data:image/" in Path(printed["report"]).read_bytes()
