import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.config import Config, parse
from schemas.errors import ConfigError
from teachers.config import Mask2FormerConfig, Sam2Config, TeacherConfig


class Project(Config):
    teacher: TeacherConfig


def test_configs_and_builders_are_read_without_torch():
    modules = "teachers.config, teachers.base, teachers.build, teachers.passport"
    code = f"import sys, {modules}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_name_of_the_weights_picks_the_other_fields():
    large = Sam2Config(weights="facebook/sam2.1-hiera-large")
    assert (large.layer, large.feature_channels, large.image_size) == ("image_embed", 256, 1024)
    assert large.sizes.blocks == (2, 6, 36, 4)
    assert not large.is_random
    assert Sam2Config().feature_channels == 32
    assert Sam2Config().is_random


def test_the_finer_levels_of_sam2_are_narrower():
    name = "facebook/sam2.1-hiera-tiny"
    levels = [Sam2Config(weights=name, layer=layer) for layer in ("image_embed", "high_res_1", "high_res_0")]
    assert [level.feature_channels for level in levels] == [256, 64, 32]
    assert len({str(level.identity()) for level in levels}) == 3
    with pytest.raises(ValidationError, match="layer"):
        Sam2Config(layer="high_res_2")


def test_the_name_of_mask2formers_weights_picks_network_and_task():
    large = Mask2FormerConfig(weights="facebook/mask2former-swin-large-coco-panoptic")
    assert (large.task, large.min_score, large.sizes.queries, large.sizes.labels) == ("panoptic", 0.8, 200, 133)
    assert (large.sizes.backbone.kind, large.sizes.backbone.window, large.feature_channels) == ("swin", 12, 256)
    resnet = Mask2FormerConfig(weights="mask2former/coco/instance/maskformer2_R50_bs16_50ep", min_score=0.1)
    assert (resnet.task, resnet.min_score, resnet.sizes.labels) == ("instance", 0.1, 80)
    assert (resnet.sizes.backbone.kind, resnet.sizes.backbone.blocks) == ("resnet", (3, 4, 6, 3))
    assert Mask2FormerConfig().layer == "mask_features"
    with pytest.raises(ValidationError, match="backbone.swin.heads"):
        Mask2FormerConfig(sizes={"backbone": {"kind": "swin", "width": 16, "blocks": (1, 1, 1, 1), "window": 4}})


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
