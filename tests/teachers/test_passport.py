import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import NonFinite
from teachers import pixels
from teachers.build import build_teacher
from teachers.config import TeacherConfig
from teachers.extract import Extractor
from teachers.mask2former.config import Mask2FormerConfig
from teachers.passport import PICTURES, Passport, changed_facts, drift, golden, moved, network, passport, passport_of
from teachers.radio.config import RadioConfig
from teachers.sam2.config import Sam2Config
from teachers.sam2.network import Sam2Features

ALL: list[TeacherConfig] = [Sam2Config(), Mask2FormerConfig(), RadioConfig()]
each = pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)


@pytest.fixture(scope="module")
def made() -> dict[str, Passport]:
    return {config.kind: passport(config) for config in ALL}


@pytest.fixture(scope="module")
def sam2(made: dict[str, Passport]) -> Passport:
    return made["sam2"]


class Changed(Sam2Features):
    """The same weights, the pictures resized and normalised in another way."""

    def __init__(self, mean: tuple[float, ...] = pixels.IMAGENET_MEAN, shift: int = 0, **resize):
        super().__init__(Sam2Config())
        self.mean, self.shift = torch.tensor(mean).view(3, 1, 1), shift
        self.resize = {"mode": "bilinear", "align_corners": False, "antialias": True} | resize

    def prepare(self, image: np.ndarray) -> Tensor:
        square = F.interpolate(pixels.to_unit(image), size=(256, 256) if self.shift else (128, 128), **self.resize)
        square = F.avg_pool2d(square[:, :, self.shift :, self.shift :], 2, ceil_mode=True) if self.shift else square
        return ((square - self.mean) / torch.tensor(pixels.IMAGENET_STD).view(3, 1, 1))[0]


def changed(before: Passport, **how) -> Passport:
    return passport_of(Extractor(Changed(**how), before.dtype), Sam2Config(dtype=before.dtype), "cpu", before.band)


def with_weight(before: Passport, name: str, by: float, config: TeacherConfig) -> Passport:
    """The passport after one number of one tensor was changed."""
    teacher = build_teacher(config)
    tensor = next(value for key, value in network(teacher).state_dict().items() if key.endswith(name))
    tensor.view(-1)[7] += by
    return passport_of(teacher, config, "cpu", before.band)


@each
def test_a_passport_says_what_made_the_features(made, config):
    found = made[config.kind]
    assert Passport.model_validate_json(found.model_dump_json()) == found
    assert (found.kind, found.weights, found.dtype, found.device) == (config.kind, "random", "float32", "cpu")
    assert found.versions["torch"] == torch.__version__
    assert len(found.probes) == len(PICTURES)
    assert all(len(probe.mean) == len(probe.std) == config.feature_channels for probe in found.probes)
    assert all(probe.scale > 0.3 for probe in found.probes)
    assert len(found.model_dump_json()) < 10_000


@each
def test_another_count_of_threads_and_other_pictures_before_move_nothing(made, config):
    teacher = build_teacher(config, threads=2)
    teacher.features([golden(60, 50)], [(4, 4)])
    before = made[config.kind]
    assert moved(before, passport_of(teacher, config, "cpu", before.band)) == []


def test_another_process_sees_the_same(made):
    code = (
        "import json, sys; from pydantic import TypeAdapter; from teachers.config import TeacherConfig\n"
        "from teachers.passport import passport\n"
        "configs = TypeAdapter(list[TeacherConfig]).validate_json(sys.argv[1])\n"
        "json.dump([passport(config).model_dump() for config in configs], sys.stdout)"
    )
    command = [sys.executable, "-c", code, json.dumps([config.model_dump() for config in ALL])]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for config, their in zip(ALL, theirs, strict=True):
        assert moved(made[config.kind], Passport.model_validate(their)) == []


def test_golden_pictures_are_the_same_on_every_machine():
    assert [golden(*size).shape for size in PICTURES] == [(*size, 3) for size in PICTURES]
    together = hashlib.sha256(b"".join(golden(*size).tobytes() for size in PICTURES)).hexdigest()
    assert together == "d36752575d4facb19da0aa438ea84815cbf13b330c5e855ad8b26c91173eb6ff"


def test_the_digest_sees_a_weight_that_the_band_cannot(sam2):
    now = with_weight(sam2, "neck.convs.0.weight", by=1e-3, config=Sam2Config())
    assert drift(sam2, now) == []
    (line,) = moved(sam2, now)
    assert re.fullmatch(r"weights: digest [0-9a-f]{12} -> [0-9a-f]{12}", line)


@each
def test_one_weight_that_matters_moves_the_features(made, config):
    name = {"sam2": "neck.convs.0.bias", "mask2former": "mask_projection.bias", "radio": "layer.1.mlp.fc2.bias"}[config.kind]
    before = made[config.kind]
    lines = drift(before, with_weight(before, name, by=0.1, config=config))
    named = re.compile(r"features: mean of channel 7 on picture \d by 0\.\d+, the band is 0\.00\d+")
    assert any(named.fullmatch(line) for line in lines)


@pytest.mark.parametrize(
    "how",
    [
        {"antialias": False},
        {"mode": "bicubic"},
        {"align_corners": True},
        {"shift": 1},
        {"mean": (0.48145466, 0.4578275, 0.40821073)},
        {"mean": (0.5, 0.5, 0.5)},
    ],
    ids=["antialias", "bicubic", "corners", "half a pixel", "CLIP's mean", "plain mean"],
)
def test_another_preprocessing_moves_the_features(sam2, how):
    now = changed(sam2, **how)
    assert drift(sam2, now) and changed_facts(sam2, now) == []


def test_the_changed_teacher_with_nothing_changed_is_the_same(sam2):
    assert moved(sam2, changed(sam2)) == []


def test_products_as_coarse_as_a_gpu_may_take_them_stay_in_the_band(sam2):
    """Inputs and weights cut to ten bits of mantissa."""

    def coarse(values: Tensor) -> Tensor:
        return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    teacher = build_teacher(Sam2Config())
    for module in network(teacher).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(coarse(module.weight))
            module.register_forward_pre_hook(lambda _, inputs: (coarse(inputs[0]), *inputs[1:]))
    now = passport_of(teacher, Sam2Config(), "cpu", sam2.band)
    assert drift(sam2, now) == []
    assert max(np.abs(np.subtract(now.probes[0].mean, sam2.probes[0].mean))) > 0


@each
def test_half_precision_has_a_wider_band_that_holds_its_own_rounding(made, config):
    before, exact = passport(config.model_copy(update={"dtype": "bfloat16"})), made[config.kind]
    assert drift(before, exact) == [] and drift(exact, before)
    assert before.band.mean > 4 * exact.band.mean > 0


def test_half_precision_sees_another_resize_and_no_other_count_of_threads():
    before = passport(Sam2Config(dtype="bfloat16"))
    assert drift(before, changed(before)) == []
    assert drift(before, changed(before, antialias=False))
    assert drift(before, changed(before, mode="bicubic"))
    assert drift(before, changed(before, shift=1))
    same = build_teacher(Sam2Config(dtype="bfloat16"), threads=2)
    assert drift(before, passport_of(same, Sam2Config(dtype="bfloat16"), "cpu", before.band)) == []


def test_an_upgrade_that_moves_nothing_is_a_note(sam2):
    upgraded = sam2.model_copy(update={"versions": sam2.versions | {"transformers": "5.99.0"}, "device": "cuda"})
    assert drift(sam2, upgraded) == []
    assert moved(sam2, upgraded) == [f"transformers {sam2.versions['transformers']} -> 5.99.0", 'device: "cpu" -> "cuda"']


def test_another_size_of_map_is_named(sam2):
    larger = passport(Sam2Config(image_size=256))
    assert drift(sam2, larger)[0] == "features: shape on picture 1 (32, 8, 8) -> (32, 16, 16)"
    assert "input.size: 128 -> 256" in changed_facts(sam2, larger)


def test_features_that_are_no_numbers_get_no_passport(sam2):
    with pytest.raises(NonFinite, match="golden picture 1, 1152 x 1536"):
        with_weight(sam2, "neck.convs.0.bias", by=float("nan"), config=Sam2Config())


@pytest.mark.gpu
@each
def test_another_device_stays_in_the_band(config):
    for dtype in ("float32", "bfloat16"):
        made = config.model_copy(update={"dtype": dtype})
        assert drift(passport(made), passport(made, device="cuda")) == []
