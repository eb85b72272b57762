from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Mask2FormerForUniversalSegmentation
from transformers.image_transforms import get_size_with_aspect_ratio

from schemas.features import bf16_bits
from teachers import mask2former
from teachers.build import build_segmenter, build_teacher
from teachers.config import Mask2FormerConfig

CONFIG = Mask2FormerConfig()


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(CONFIG, CONFIG.spec("mask2former"))


@pytest.fixture(scope="module")
def network():
    return mask2former.load(CONFIG)


def test_features_are_those_of_the_full_model(teacher, network, pictures):
    for image, feature in zip(pictures, teacher.features(pictures), strict=True):
        full = network.model(mask2former.preprocess(image, CONFIG)).pixel_decoder_last_hidden_state
        expected = torch.nn.functional.interpolate(full, size=(32, 32), mode="bilinear", align_corners=False)[0]
        assert feature.shape == (32, 32, 32) and feature.dtype == np.float32
        np.testing.assert_array_equal(feature, expected.numpy())


def test_the_mask_features_have_stride_four(network, pictures):
    pixels = mask2former.preprocess(pictures[1], CONFIG)
    assert pixels.shape == (1, 3, 128, 224)
    assert network.model.pixel_level_module(pixels).decoder_last_hidden_state.shape == (1, 32, 32, 56)


def test_the_network_answers_as_the_class_of_transformers(network, pictures):
    """Its forward, on our parts: the class itself cannot be made without scipy, which only its loss needs."""
    pixels = mask2former.preprocess(pictures[0], CONFIG)
    parts = SimpleNamespace(
        config=network.config,
        model=network.model,
        class_predictor=network.class_predictor,
        get_auxiliary_logits=lambda classes, masks: None,
    )
    reference = Mask2FormerForUniversalSegmentation.forward(parts, pixels)
    classes, masks = network(pixels)
    torch.testing.assert_close(classes, reference.class_queries_logits)
    torch.testing.assert_close(masks, reference.masks_queries_logits)


def test_an_image_alone_has_the_stored_bits_it_has_in_a_batch(teacher, pictures):
    together = teacher.features(pictures)
    alone = [teacher.features([image])[0] for image in reversed(pictures)][::-1]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(bf16_bits(one), bf16_bits(other))


def test_random_features_depend_on_the_picture_and_the_place(teacher, pictures):
    features_NCHW = np.stack(teacher.features(pictures))
    assert 0.5 < features_NCHW.std() < 2
    assert features_NCHW.std(axis=(0, 2, 3)).min() > 0.3
    assert abs(features_NCHW.mean(axis=(0, 2, 3))).mean() < features_NCHW.std()
    assert features_NCHW.std(axis=0).mean() > 0.3


def test_input_sizes_are_those_of_the_reference(rng):
    published = Mask2FormerConfig(weights="facebook/mask2former-swin-large-coco-panoptic")
    assert mask2former.input_size(480, 640, published) == (800, 1088)
    sizes = [*rng.integers(20, 3000, (200, 2)).tolist(), [800, 1100], [10, 1390], [1333, 1333], [50, 3000]]
    for height, width in sizes:
        rounded = tuple(-(-side // 32) * 32 for side in get_size_with_aspect_ratio((height, width), 800, 1333))
        assert mask2former.input_size(height, width, published) == rounded, (height, width)


def test_a_sliver_of_a_picture_still_has_an_input():
    assert mask2former.input_size(1, 4000, CONFIG)[0] == 32


def test_segments_are_disjoint_masks_of_the_picture(pictures):
    segmenter = build_segmenter(CONFIG)
    found = [segmenter.segments(image) for image in pictures]
    assert sum(len(regions) for regions in found) > len(pictures)
    for image, regions in zip(pictures, found, strict=True):
        assert all(one.mask_HW.shape == image.shape[:2] and one.mask_HW.dtype == bool for one in regions)
        assert all(one.mask_HW.any() for one in regions)
        assert np.sum([one.mask_HW for one in regions], axis=0).max() <= 1
        assert all(one.category.startswith("LABEL_") for one in regions)
        assert all(one.is_thing == (int(one.category.removeprefix("LABEL_")) < CONFIG.things) for one in regions)
        scores = [one.score for one in regions]
        assert scores == sorted(scores, reverse=True)


def test_nothing_passes_an_impossible_score(pictures):
    assert build_segmenter(Mask2FormerConfig(min_score=1.1)).segments(pictures[0]) == []


THINGS = Mask2FormerConfig(things=5, min_overlap=0.8)


def regions_of(masks: list[list[float]], scores: list[float], labels: list[int]) -> list[tuple[int, float, list[int]]]:
    """`panoptic` on pictures of one row."""
    found = mask2former.panoptic(torch.tensor(masks)[:, None], torch.tensor(scores), torch.tensor(labels), THINGS)
    return [(label, round(score, 4), mask[0].int().tolist()) for label, score, mask in found]


def test_a_pixel_goes_to_the_largest_product_of_score_and_mask():
    masks = [[0.9, 0.9, 0.9, 0.0], [0.0, 0.0, 0.6, 0.9]]
    assert regions_of(masks, [0.5, 1.0], [1, 2]) == [(2, 1.0, [0, 0, 1, 1])]
    assert regions_of(masks, [1.0, 0.9], [1, 2]) == [(1, 1.0, [1, 1, 1, 0])]


def test_a_pixel_of_a_weak_mask_belongs_to_nobody():
    assert regions_of([[0.9, 0.9, 0.3, 0.4]], [1.0], [1]) == [(1, 1.0, [1, 1, 0, 0])]


def test_stuff_is_merged_and_things_are_not():
    masks = [[0.9, 0.9, 0.0, 0.0], [0.0, 0.0, 0.9, 0.9]]
    assert regions_of(masks, [0.8, 0.9], [7, 7]) == [(7, 0.9, [1, 1, 1, 1])]
    assert regions_of(masks, [0.8, 0.9], [3, 3]) == [(3, 0.8, [1, 1, 0, 0]), (3, 0.9, [0, 0, 1, 1])]
    assert regions_of([], [], []) == []
