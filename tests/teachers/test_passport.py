import json

import torch

from teachers import sam2, weights
from teachers.config import Mask2FormerConfig, Sam2Config
from teachers.passport import passport


def test_a_passport_says_what_made_the_features():
    made = passport(Mask2FormerConfig())
    assert json.loads(json.dumps(made)) == made
    assert made["random"] and made["kind"] == "mask2former" and made["dtype"] == "float32"
    assert made["input"]["shortest_edge"] == 128 and made["input"]["mean"] == [0.485, 0.456, 0.406]
    assert made["versions"]["torch"] == torch.__version__
    assert passport(Mask2FormerConfig()) == made


def test_the_digest_is_that_of_the_weights():
    made, other_input, other_weights = (
        passport(config) for config in (Sam2Config(), Sam2Config(image_size=256), Sam2Config(seed=1))
    )
    assert made["digest"] == other_input["digest"] and made["input"] != other_input["input"]
    assert made["digest"] != other_weights["digest"] and made["input"] == other_weights["input"]


def test_one_changed_weight_changes_the_digest():
    network = sam2.load(Sam2Config())
    before = weights.digest(network)
    assert before == weights.digest(sam2.load(Sam2Config()))
    network.no_memory_embedding[0, 0, 5] += 1e-6
    assert weights.digest(network) != before
