import json

import numpy as np
import pytest
import torch
from PIL import Image

from schemas.errors import ConfigError, DataError
from teachers.build import build_segmenter, build_teacher
from teachers.config import Sam2Config
from teachers.sam2 import filters, network
from teachers.sam2.prompts import read_prompts
from teachers.sam2.segmenter import point_grid
from tests.sample import sample_of
from tests.teachers.official import crowd, plain_nms

CONFIG = Sam2Config()
LAYERS = ("high_res_0", "high_res_1", "image_embed")
NATIVE = [None] * 3


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(CONFIG)


@pytest.fixture(scope="module")
def segmenter():
    return build_segmenter(CONFIG)


@pytest.mark.parametrize(
    ("layer", "shape"), [("high_res_0", (4, 32, 32)), ("high_res_1", (8, 16, 16)), ("image_embed", (32, 8, 8))]
)
def test_features_are_the_image_embeddings_of_transformers(pictures, layer, shape):
    config = Sam2Config(layer=layer)
    whole = network.load(config)
    for image, feature in zip(pictures, build_teacher(config).features(pictures, NATIVE), strict=True):
        expected = whole.get_image_embeddings(network.preprocess(image, CONFIG.image_size))[LAYERS.index(layer)][0]
        assert feature.shape == shape and feature.dtype == np.float32 and feature.shape[0] == config.feature_channels
        np.testing.assert_array_equal(feature, expected.numpy())


@pytest.mark.parametrize(("layer", "needed"), [("high_res_0", 1), ("high_res_1", 2), ("image_embed", 4)])
def test_a_finer_level_runs_the_first_stages_only(pictures, layer, needed):
    features = network.Sam2Features(Sam2Config(layer=layer))
    assert len(network.stages(features._model, features.prepare(pictures[0])[None])) == needed


def test_the_no_memory_embedding_is_added(pictures):
    features = network.Sam2Features(CONFIG)
    prepared = features.prepare(pictures[0])[None]
    features._model.no_memory_embedding.fill_(0)
    bare = features.maps(prepared)
    features._model.no_memory_embedding.fill_(0.25)
    torch.testing.assert_close(features.maps(prepared), bare + 0.25)


def test_a_finer_grid_is_a_bilinear_resize(teacher, pictures):
    (resized,) = teacher.features(pictures[:1], [(12, 20)])
    own = torch.from_numpy(teacher.features(pictures[:1], [None])[0])[None]
    expected = torch.nn.functional.interpolate(own, size=(12, 20), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(resized, expected.numpy())


def test_random_features_depend_on_the_picture_and_the_place(teacher, pictures):
    features_NCHW = np.stack(teacher.features(pictures, NATIVE))
    assert 0.5 < features_NCHW.std() < 2
    assert features_NCHW.std(axis=(0, 2, 3)).min() > 0.15
    assert abs(features_NCHW.mean(axis=(0, 2, 3))).mean() < features_NCHW.std()
    assert features_NCHW.std(axis=0).mean() > 0.3


def test_half_precision_stays_near_full(teacher, pictures):
    rough = build_teacher(Sam2Config(dtype="bfloat16")).features(pictures[:1], [None])[0]
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - teacher.features(pictures[:1], [None])[0]).max() < 0.2


def squashing(long: int, short: int) -> np.ndarray:
    """(short, long) weights of an antialiased bilinear resize, output by output: a triangle as wide as the step."""
    step = long / short
    weights = np.zeros((short, long))
    for out in range(short):
        for at in range(long):
            away = abs(at + 0.5 - (out + 0.5) * step) / max(step, 1)
            weights[out, at] = max(0.0, 1 - away)
    return weights / weights.sum(axis=1, keepdims=True)


def expected_input(image: np.ndarray, side: int) -> np.ndarray:
    unit = image.astype(np.float64) / 255
    tall, wide = (squashing(length, side) for length in image.shape[:2])
    squashed = np.einsum("ah,bw,hwc->cab", tall, wide, unit, optimize=True)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (squashed - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("size", [(300, 200), (60, 500), (90, 40)])
def test_the_input_is_squashed_and_antialiased(rng, size):
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.abs(network.preprocess(image, 128)[0].numpy() - expected_input(image, 128)).max() < 1e-5


@pytest.mark.sample
def test_the_input_of_a_photograph_is_squashed_and_antialiased():
    for file in sorted(sample_of("coco").glob("images/*.jpg"))[:2]:
        with Image.open(file) as opened:
            image = np.array(opened.convert("RGB"))
        assert np.abs(network.preprocess(image, 256)[0].numpy() - expected_input(image, 256)).max() < 1e-5


def test_a_read_only_picture_is_fine_and_a_grey_one_is_not(teacher, pictures):
    pictures[0].setflags(write=False)
    assert teacher.features(pictures[:1], [None])[0].shape == (32, 8, 8)
    with pytest.raises(DataError, match="RGB"):
        teacher.features([pictures[1][:, :, 0]], [None])


def test_a_pyramid_of_another_kind_is_refused(tmp_path):
    network.load(CONFIG).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["vision_config"]["fpn_top_down_levels"] = [1, 2, 3]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"top_down: \[2, 3\] -> \[1, 2, 3\]"):
        network.load(CONFIG.model_copy(update={"weights": "somebody/sam2", "folder": str(tmp_path)}))


def test_segments_are_masks_of_the_picture_best_first(segmenter, pictures):
    for image in pictures:
        found = segmenter.segments(image)
        assert 1 < len(found) <= 3 * CONFIG.points_per_side**2
        assert all(one.mask_HW.shape == image.shape[:2] and one.mask_HW.dtype == bool for one in found)
        assert all(one.mask_HW.any() for one in found)
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)


def test_every_point_is_clicked_over_several_batches(pictures):
    many = build_segmenter(Sam2Config(points_per_side=9)).segments(pictures[0])
    assert 2 * 81 < len(many) <= 3 * 81


def test_segments_are_what_clicking_and_filtering_by_hand_gives(segmenter, pictures):
    (image, *_) = pictures
    places = [[[(x + 0.5) / 4 * image.shape[1], (y + 0.5) / 4 * image.shape[0]]] for y in range(4) for x in range(4)]
    clicked = segmenter.prompted(image, points=places)
    median = sorted(one.score for one in clicked)[len(clicked) // 2]
    good = [one for one in clicked if one.score > median and one.mask_HW.any()]
    boxes = torch.tensor([plain_box(one.mask_HW) for one in good])
    kept = plain_nms(boxes, torch.tensor([one.score for one in good]), 0.95).tolist()
    found = build_segmenter(Sam2Config(points_per_side=4, min_score=median, max_overlap=0.95)).segments(image)
    assert 1 < len(kept) < len(good)
    assert [one.score for one in found] == [good[index].score for index in kept]
    for one, index in zip(found, kept, strict=True):
        np.testing.assert_array_equal(one.mask_HW, good[index].mask_HW)


def test_no_mask_is_left_by_thresholds_that_none_reaches(pictures):
    assert build_segmenter(Sam2Config(min_score=1.1)).segments(pictures[0]) == []
    assert build_segmenter(Sam2Config(min_stability=1.1)).segments(pictures[0]) == []


def test_prompts_give_three_guesses_or_one_in_their_order(segmenter, pictures):
    image = pictures[1]
    boxes = [[10, 10, 60, 50], [5, 20, 150, 90.5]]
    guesses = segmenter.prompted(image, boxes=boxes)
    assert len(guesses) == 6 and all(one.mask_HW.shape == image.shape[:2] for one in guesses)
    turned = segmenter.prompted(image, boxes=boxes[::-1])
    assert [one.score for one in turned] == [one.score for one in guesses[3:] + guesses[:3]]
    assert len(segmenter.prompted(image, boxes=np.array(boxes), several=False)) == 2
    assert len(segmenter.prompted(image, points=np.full((70, 1, 2), 40.0))) == 210


def test_labels_and_boxes_change_the_answer(segmenter, pictures):
    clicks = [[[20, 30], [60, 40]]]
    inside = segmenter.prompted(pictures[0], points=clicks)
    assert scores(inside) == scores(segmenter.prompted(pictures[0], points=clicks, labels=[[1, 1]]))
    assert scores(inside) != scores(segmenter.prompted(pictures[0], points=clicks, labels=[[1, 0]]))
    assert scores(inside) != scores(segmenter.prompted(pictures[0], points=clicks, boxes=[[10, 10, 90, 90]]))


def scores(proposals):
    return [one.score for one in proposals]


def test_a_box_is_two_corners_before_the_clicks():
    places, meanings = read_prompts([[[1, 2]], [[3, 4]]], [[0], [1]], [[5, 6, 7, 8], [9, 10, 11, 12]])
    assert places.tolist() == [[[5, 6], [7, 8], [1, 2]], [[9, 10], [11, 12], [3, 4]]]
    assert meanings.tolist() == [[2, 3, 0], [2, 3, 1]]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({}, "points or boxes"),
        ({"labels": [[1]], "boxes": [[0, 0, 1, 1]]}, "labels belong to points"),
        ({"boxes": [0, 0, 1, 1]}, r"boxes \(objects, 4\)"),
        ({"boxes": np.zeros((0, 4))}, r"boxes \(objects, 4\)"),
        ({"points": [[1, 2]]}, r"points \(objects, clicks, 2\)"),
        ({"points": [[[1, 2]], [[1, 2], [3, 4]]]}, r"points \(objects, clicks, 2\)"),
        ({"points": [[[1, float("nan")]]]}, "finite"),
        ({"points": [[[1, 2]]], "labels": [[1, 1]]}, "one a point"),
        ({"points": [[[1, 2]]], "labels": [[2]]}, "1 for a click inside"),
        ({"points": [[[1, 2]]], "boxes": [[0, 0, 1, 1]] * 2}, "2 boxes"),
    ],
)
def test_prompts_of_another_form_are_refused(segmenter, pictures, prompt, said):
    with pytest.raises(DataError, match=said):
        segmenter.prompted(pictures[0], **prompt)


def test_the_decoder_rounds_otherwise_and_means_the_same(segmenter, pictures):
    """The segmenter's changes to the decoder of transformers: the same numbers but for their last bits."""
    whole = network.load(CONFIG)
    for clicks in (torch.tensor([[[30.0, 40.0]]]), torch.tensor([[[30.0, 40.0]], [[90.0, 20.0]], [[64.0, 64.0]]])):
        levels = whole.get_image_embeddings(network.preprocess(pictures[0], CONFIG.image_size))
        expected = whole(image_embeddings=levels, input_points=clicks[None])
        found = segmenter.prompted(pictures[0], points=clicks)
        assert scores(found) == pytest.approx(expected.iou_scores.flatten().tolist(), abs=1e-6)


def test_the_grid_is_the_middle_of_each_cell():
    assert point_grid(2, (40, 80)).tolist() == [[20, 10], [60, 10], [20, 30], [60, 30]]


def test_stability_compares_two_cuts():
    logits = torch.full((3, 2, 2), -5.0)
    logits[0] = 5.0
    logits[1, 0, 0], logits[1, 0, 1] = 5.0, 0.5
    assert filters.stability(logits).tolist() == [1.0, 0.5, 0.0]


def plain_box(mask_HW: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask_HW)
    return [columns.min(), rows.min(), columns.max(), rows.max()]


def test_boxes_are_the_first_and_last_rows_and_columns(rng):
    masks = rng.random((50, 6, 8)) < 0.1
    masks[:, 0, 0] |= ~masks.any((1, 2))
    masks[0] = False
    masks[0, 5, 7] = True
    assert filters.boxes(torch.from_numpy(masks)).tolist() == [plain_box(mask) for mask in masks]
    assert filters.boxes(torch.zeros(0, 6, 8, dtype=torch.bool)).shape == (0, 4)


def test_suppression_keeps_the_best_of_each_crowd():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.6])
    assert filters.suppress(boxes, scores, 0.7).tolist() == [1, 2, 3]
    assert filters.suppress(boxes, scores, 1.0).tolist() == [1, 2, 3, 0]
    assert filters.suppress(boxes[:0], scores[:0], 0.7).tolist() == []


def test_suppression_is_the_plain_loop():
    random = torch.Generator().manual_seed(0)
    for trial in range(60):
        boxes, scores = crowd(random)
        limit = trial % 11 / 10
        assert filters.suppress(boxes, scores, limit).tolist() == plain_nms(boxes, scores, limit).tolist()


def test_an_overlap_is_rounded_before_it_is_compared():
    """6 of 10 pixels in float32 is a little more than 0.6 in float64."""
    boxes, scores = torch.tensor([[0, 0, 10, 1], [0, 0, 6, 1]]), torch.tensor([0.9, 0.8])
    assert filters.suppress(boxes, scores, 0.6).tolist() == [0]


@pytest.mark.gpu
def test_suppression_is_the_same_on_a_gpu():
    random = torch.Generator().manual_seed(1)
    for trial in range(30):
        boxes, scores = crowd(random)
        there = filters.suppress(boxes.cuda(), scores.cuda(), trial % 11 / 10)
        assert there.is_cuda
        assert there.tolist() == filters.suppress(boxes, scores, trial % 11 / 10).tolist()
