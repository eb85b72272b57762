import numpy as np
import pytest
import torch
from PIL import Image

from schemas.errors import DataError
from schemas.features import bf16_bits
from teachers import sam2
from teachers.build import build_segmenter, build_teacher
from teachers.config import Sam2Config

CONFIG = Sam2Config()


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(CONFIG, CONFIG.spec("sam2"))


def test_features_are_the_last_level_of_the_image_embeddings(teacher, pictures):
    network = sam2.load(CONFIG)
    for image, feature in zip(pictures, teacher.features(pictures), strict=True):
        expected = network.get_image_embeddings(sam2.preprocess(image, CONFIG.image_size))[-1][0]
        assert feature.shape == (32, 8, 8) and feature.dtype == np.float32
        np.testing.assert_array_equal(feature, expected.numpy())


def test_the_no_memory_embedding_is_added(pictures):
    network = sam2.load(CONFIG)
    pixels = sam2.preprocess(pictures[0], CONFIG.image_size)
    bare = network.vision_encoder(pixels).fpn_hidden_states[-1]
    network.no_memory_embedding.fill_(0.25)
    torch.testing.assert_close(network.get_image_embeddings(pixels)[-1], bare + 0.25)


def test_a_finer_grid_is_a_bilinear_resize(teacher, pictures):
    finer = Sam2Config(grid=(12, 20))
    (resized,) = build_teacher(finer, finer.spec("sam2")).features(pictures[:1])
    own = torch.from_numpy(teacher.features(pictures[:1])[0])[None]
    expected = torch.nn.functional.interpolate(own, size=(12, 20), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(resized, expected.numpy())


def test_an_image_alone_has_the_stored_bits_it_has_in_a_batch(teacher, pictures):
    together = teacher.features(pictures)
    alone = [teacher.features([image])[0] for image in reversed(pictures)][::-1]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(bf16_bits(one), bf16_bits(other))


def test_random_features_depend_on_the_picture_and_the_place(teacher, pictures):
    features_NCHW = np.stack(teacher.features(pictures))
    assert 0.5 < features_NCHW.std() < 2
    assert features_NCHW.std(axis=(0, 2, 3)).min() > 0.15
    assert abs(features_NCHW.mean(axis=(0, 2, 3))).mean() < features_NCHW.std()
    assert features_NCHW.std(axis=0).mean() > 0.3


def test_half_precision_stays_near_full(teacher, pictures):
    half = Sam2Config(dtype="bfloat16")
    rough, exact = build_teacher(half, half.spec("sam2")).features(pictures[:1])[0], teacher.features(pictures[:1])[0]
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.2


def test_preprocessing_squashes_with_antialiasing():
    """Pillow's bilinear filter is the same one with its result rounded to bytes: one level is 1 / 255 / 0.224 = 0.0175."""
    image = np.random.default_rng(1).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    squashed = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BILINEAR)) / 255
    expected = (squashed - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    ours = sam2.preprocess(image, 128)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() < 0.0176


def test_a_read_only_picture_is_fine_and_a_grey_one_is_not(teacher, pictures):
    pictures[0].setflags(write=False)
    assert teacher.features(pictures[:1])[0].shape == (32, 8, 8)
    with pytest.raises(DataError, match="RGB"):
        teacher.features([pictures[1][:, :, 0]])


def test_segments_are_masks_of_the_picture_best_first(pictures):
    segmenter = build_segmenter(CONFIG)
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


def test_thresholds_drop_regions(pictures):
    (image, *_) = pictures
    everything = build_segmenter(CONFIG).segments(image)
    median = sorted(one.score for one in everything)[len(everything) // 2]
    better = build_segmenter(Sam2Config(min_score=median)).segments(image)
    assert [one.score for one in better] == [one.score for one in everything if one.score >= median]
    assert len(build_segmenter(Sam2Config(max_overlap=0.5)).segments(image)) < len(everything)
    assert build_segmenter(Sam2Config(min_score=1.1)).segments(image) == []


def test_point_grid_is_the_middle_of_each_cell():
    assert sam2.point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_stability_compares_two_cuts():
    logits = torch.full((3, 2, 2), -5.0)
    logits[0] = 5.0
    logits[1, 0, 0], logits[1, 0, 1] = 5.0, 0.5
    assert sam2.stability(logits).tolist() == [1.0, 0.5, 0.0]


def test_boxes_are_tight_and_exclusive():
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 2:5, 1:4] = True
    masks[1, 5, 7] = True
    assert sam2.boxes(masks).tolist() == [[1, 2, 4, 5], [7, 5, 8, 6]]


def test_suppression_keeps_the_best_of_each_crowd():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.6])
    assert sam2.suppress(boxes, scores, 0.7).tolist() == [1, 2, 3]
    assert sam2.suppress(boxes, scores, 1.0).tolist() == [1, 2, 3, 0]
    assert sam2.suppress(boxes[:0], scores[:0], 0.7).tolist() == []
