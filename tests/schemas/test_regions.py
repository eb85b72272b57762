import numpy as np
import pytest

from schemas.errors import DataError
from schemas.regions import VOID, Level, Rle, box_mask, overlaps, valued


def test_round_trip_area_and_box(rng):
    for shape in [(1, 1), (7, 3), (20, 31)]:
        mask = rng.random(shape) > 0.6
        rle = Rle.of(mask)
        assert np.array_equal(rle.mask(), mask)
        assert rle.area == mask.sum()
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    assert Rle.of(mask).box == (3, 2, 9, 5)
    assert Rle.of(np.zeros((4, 4), bool)).box == (0, 0, 0, 0)


def test_polygons_of_one_object_are_joined_not_summed():
    left, right = [1, 1, 6, 1, 6, 6, 1, 6], [4, 1, 9, 1, 9, 6, 4, 6]
    both = Rle.from_coco([left, right], 10, 10).mask()
    assert np.array_equal(both, Rle.from_coco([left], 10, 10).mask() | Rle.from_coco([right], 10, 10).mask())


def test_where_parts_lie_over_one_another_it_is_said_how_many():
    boxes = [[0, 0, 6, 0, 6, 10, 0, 10], [4, 0, 9, 0, 9, 10, 4, 10], [5, 0, 10, 0, 10, 4, 5, 4]]
    parts = Rle.parts(boxes, 10, 10)
    counts_HW = sum(Rle.from_coco([box], 10, 10).mask().astype(int) for box in boxes)
    levels = overlaps(parts)
    assert [level.value for level in levels] == [2, 3]
    assert np.array_equal(valued(Rle.from_coco(boxes, 10, 10), levels), counts_HW)
    assert max(level.value for level in overlaps(parts[:1] * 300)) < VOID
    assert overlaps(parts[:1]) == overlaps(Rle.parts([boxes[0], [8, 8, 9, 8, 9, 9]], 10, 10)) == []


def test_what_is_void_is_told_from_what_is_in_and_out():
    inside, void = np.zeros((2, 4, 4), bool)
    inside[:, :2], void[0, 1:3] = True, True
    values_HW = valued(Rle.of(inside & ~void), [Level(VOID, Rle.of(void))])
    assert np.array_equal(values_HW == VOID, void)
    assert np.array_equal(values_HW == 1, inside & ~void)


def test_a_polygon_is_clipped_to_its_image():
    assert Rle.from_coco([[-50, -50, 200, -50, 200, 200, -50, 200]], 8, 6).area == 48
    assert Rle.from_coco([[20, 20, 30, 20, 30, 30]], 8, 6).area == 0


def test_uncompressed_and_compressed_counts_agree():
    uncompressed = Rle.from_coco({"size": [4, 3], "counts": [2, 5, 5]}, 4, 3)
    assert Rle.from_coco({"size": [4, 3], "counts": uncompressed.counts}, 4, 3) == uncompressed
    assert uncompressed.area == 5


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 3], "counts": [2, 5, 500]},
        {"size": [4, 3], "counts": [-2, 5, 9]},
        {"size": [9, 9], "counts": [2, 5, 5]},
        {"size": [4, 3], "counts": "P" * 40},
        {"size": [4, 3], "counts": "\x01"},
        {"size": [4, 3]},
        [[0, 0, 1, 1]],
        [[0, 0, float("nan"), 1, 2, 2]],
        "text",
    ],
)
def test_nonsense_is_refused_before_the_c_decoder_sees_it(segmentation):
    with pytest.raises(DataError):
        Rle.from_coco(segmentation, 4, 3)


def test_real_compressed_counts_pass_the_check(rng):
    for _ in range(50):
        rle = Rle.of(rng.random((37, 23)) > rng.random())
        assert Rle.from_coco({"size": [37, 23], "counts": rle.counts}, 37, 23) == rle


@pytest.mark.parametrize(("padding", "is_read"), [("M", True), ("moooO", True), ("mooooO", False), ("moooooO", False)])
def test_a_number_longer_than_the_c_decoder_can_shift_is_refused(padding, is_read):
    segmentation = {"size": [8, 10], "counts": f"4V24l{padding}"}  # 4, 70, 4 and 2, which is written as 2 - 70
    if is_read:
        assert Rle.from_coco(segmentation, 8, 10).mask().sum() == Rle.from_coco(segmentation, 8, 10).area == 72
        return
    with pytest.raises(DataError, match="more than 30 bits"):
        Rle.from_coco(segmentation, 8, 10)


@pytest.mark.parametrize("run", [2**24, 2**29 - 1])
def test_runs_below_two_to_the_29_are_read_whether_they_grow_or_shrink(run):
    for counts in ([0, run, 3, 5], [0, 5, 3, run]):
        assert Rle.from_coco({"size": [1, run + 8], "counts": counts}, 1, run + 8).area == run + 5


def test_box_masks_are_clipped_and_finite():
    assert box_mask((-5, -5, 3, 2), 6, 8).sum() == 6
    with pytest.raises(DataError, match="not finite"):
        box_mask((0, 0, float("nan"), 2), 6, 8)
