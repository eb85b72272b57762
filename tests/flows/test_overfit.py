"""Eight photographs and what is said of them, learned by heart: the whole path, from files to masks, must let that happen."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flows.config import Project
from schemas.artifact import Artifact
from schemas.config import parse, read_toml
from schemas.dialogue import Sample
from schemas.storage import Folder
from student.config import StudentConfig
from student.data.corpus import Corpus
from student.data.samples import encode_question
from student.generate import generate
from student.training.checkpoint import open_student
from student.vocabulary import Vocabulary
from tests.flows.photographs import as_reference, chosen_pictures
from tests.flows.small import sailyard
from tests.sample import sample_of

PICTURES = 8
CONFIG = """
name = "overfit"
workspace = "{workspace}"
pool.shards = 2
vocabulary.size = 512
samples.tasks = ["segmentation"]

[source]
kind = "coco"
images = ["{pictures}"]
instances = ["{sample}/instances.json"]
panoptic = ["{sample}/panoptic.json"]
refs = ["{refs}"]

[student]
layers = 5
hidden = 128
heads = 4
kv_heads = 4
head_dim = 32
ffn = 384
rope_theta = 100
max_side = 256
mask_dim = 64
mask_width = 64
max_length = 1024
initializer_range = 0.05
embedding_range = 1.0
recency = 1.0

[loss]
points = 2048

[optim]
learning_rate = 1e-3
betas = [0.9, 0.98]

[train]
steps = 500
batch = 8
micro_batch = 8
precision = "bfloat16"

[resources]
executor = "local"
threads = 2
"""


@pytest.fixture(scope="module")
def trained(prefect_server, tmp_path_factory) -> tuple[StudentConfig, dict[str, Artifact]]:
    """The student's sizes, and the artifacts of the run."""
    sample, folder = sample_of("coco"), tmp_path_factory.mktemp("overfit")
    records = [json.loads(line) for line in (sample / "refs.jsonl").read_text().splitlines()]
    known = [record for record in records if record["mask_source"]]
    said = Counter(record["image_id"] for record in known)
    chosen = sorted(said, key=lambda image_id: (-said[image_id], image_id))[:PICTURES]
    known = [record | {"split": "train"} for record in known if record["image_id"] in chosen]
    (folder / "refs.p").write_bytes(pickle.dumps([as_reference(record) for record in known], 0))
    places = {"workspace": folder / "runs", "sample": sample, "refs": folder / "refs.p"}
    config = folder / "overfit.toml"
    config.write_text(CONFIG.format(pictures=chosen_pictures(sample, chosen, folder / "images"), **places))
    done = sailyard("run", config, "--json", within=1700)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])["artifacts"]
    student = parse(Project, read_toml(config), str(config)).student
    return student, {name: Artifact.sealed(Folder(url)) for name, url in made.items()}


def asked_one_by_one(corpus: Corpus) -> list[tuple[int, Sample]]:
    """Every expression as a dialogue of its own, and the number of the sample that has its picture."""
    samples = [corpus.sample(number) for number in range(len(corpus))]
    return [
        (number, replace(sample, turns=[turn], masks=[mask]))
        for number, sample in enumerate(samples)
        for turn, mask in zip(sample.turns, sample.masks, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.timeout(1800)
def test_eight_photographs_are_learned_by_heart(trained):
    config, made = trained
    vocabulary = Vocabulary.from_json(made["vocabulary"].folder.read("tokenizer.json").decode())
    model = open_student(made["train"].folder, config, vocabulary, threads=2)
    corpus = Corpus(samples=made["samples"], images=made["images"], features={}, vocabulary=vocabulary, config=config)
    questions = asked_one_by_one(corpus)
    examples = [encode_question(vocabulary, config, sample, corpus.picture(number)) for number, sample in questions]
    shared = union = 0
    for (_, sample), answer in zip(questions, generate(model, vocabulary, examples, max_new_tokens=16), strict=True):
        target = sample.masks[0].mask()
        found = answer.masks(*target.shape)
        found = found[0] if len(found) else np.zeros_like(target)
        shared, union = shared + np.count_nonzero(found & target), union + np.count_nonzero(found | target)
    print(f"cIoU {shared / union:.3f} over {len(questions)} expressions")
    assert len(questions) >= PICTURES
    assert shared / union >= 0.9
