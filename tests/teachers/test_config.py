import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.config import Config, parse
from schemas.errors import ConfigError
from teachers.build import build_teacher
from teachers.config import Mask2FormerConfig, Sam2Config, TeacherConfig


class Project(Config):
    teacher: TeacherConfig


def test_configs_and_builders_are_read_without_torch():
    modules = "teachers.config, teachers.base, teachers.build, teachers.passport"
    code = f"import sys, {modules}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_name_of_the_weights_picks_the_other_fields():
    large = Sam2Config(weights="facebook/sam2.1-hiera-large")
    assert large.spec("sam2").shape == (256, 64, 64)
    assert large.image_size == 1024
    assert large.sizes.blocks == (2, 6, 36, 4)
    assert not large.is_random
    micro = Sam2Config()
    assert micro.spec("sam2").shape == (32, 8, 8)
    assert micro.is_random
    assert Sam2Config(grid=(16, 16)).spec("sam2").shape == (32, 16, 16)


def test_a_spec_names_its_teacher_and_layer():
    assert Sam2Config().spec("eyes").teacher == "eyes"
    assert {Sam2Config().spec("a").layer, Mask2FormerConfig().spec("a").layer} == {"image_embed", "mask_features"}


def test_kind_chooses_the_class_and_its_faults_are_named():
    assert parse(Project, {"teacher": {"kind": "mask2former", "things": 3}}, "x.toml").teacher == Mask2FormerConfig(things=3)
    with pytest.raises(ConfigError, match=r"image_sise.*did you mean image_size"):
        parse(Project, {"teacher": {"kind": "sam2", "image_sise": 64}}, "x.toml")
    with pytest.raises(ConfigError, match="kind"):
        parse(Project, {"teacher": {"kind": "sam3"}}, "x.toml")


def test_a_config_survives_json():
    for config in (Sam2Config(seed=4), Mask2FormerConfig(weights="facebook/mask2former-swin-tiny-coco-panoptic")):
        assert TypeAdapter(TeacherConfig).validate_json(config.model_dump_json()) == config


def test_where_the_files_lie_is_not_identity():
    here, there = (Sam2Config(weights="facebook/sam2.1-hiera-tiny", folder=folder) for folder in ("a", "b"))
    assert here.identity() == there.identity()
    assert here.identity() != Sam2Config(weights="facebook/sam2.1-hiera-tiny", dtype="float32").identity()


def test_sides_that_the_networks_cannot_take_are_refused():
    with pytest.raises(ValidationError, match="image_size"):
        Sam2Config(image_size=100)
    with pytest.raises(ValidationError, match="channels"):
        Mask2FormerConfig(channels=40)


def test_a_spec_with_other_channels_is_refused():
    spec = Sam2Config(weights="facebook/sam2.1-hiera-large").spec("sam2")
    with pytest.raises(ConfigError, match="32 channels, the spec 256"):
        build_teacher(Sam2Config(), spec)
