import re

import numpy as np
import pytest

from schemas.regions import Rle, box_mask
from stages.report import drawing
from stages.report.graph import Node, dag, layers_of, reduced
from stages.report.pictures import answered
from stages.report.plots import curve, linear_ticks, log_ticks, smoothed

H, W = 48, 64


def rle(*box: int) -> Rle:
    return Rle.of(box_mask(box, H, W))


def test_an_answer_is_drawn_where_its_masks_are():
    base = drawing.blank(4 * W, 4 * H)
    drawn = np.asarray(answered(base, [rle(10, 10, 20, 20)], [rle(40, 20, 60, 40)])).astype(int)
    changed = (drawn != np.asarray(base)).any(axis=-1)
    ys, xs = np.nonzero(changed)
    assert (xs.min() // 4, ys.min() // 4, xs.max() // 4, ys.max() // 4) == pytest.approx((10, 10, 60, 40), abs=2)
    near = lambda colour: (np.abs(drawn - colour).sum(axis=-1) < 60) & changed  # noqa: E731
    target, prediction = (np.stack(np.nonzero(near(c))[::-1]).mean(axis=1) / 4 for c in (drawing.TARGET, drawing.PREDICTION))
    assert target == pytest.approx((15, 15), abs=1) and prediction == pytest.approx((50, 30), abs=1)
    assert not changed[56:64, 56:64].any(), "the inside of the target is left as it is"
    void = np.asarray(answered(base, [rle(10, 10, 20, 20)], [], [rle(40, 20, 60, 40)])).astype(int)
    assert (void[84:156, 164:236] < np.asarray(base)[84:156, 164:236]).all(), "what is not scored is dark"


def test_a_palette_means_one_thing_in_every_picture():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(3, 16)).astype(np.float32) * 5
    maps = [np.moveaxis(kinds[labels], -1, 0) for labels in rng.integers(0, 3, (4, 6, 6))]
    palette = drawing.Palette.of(maps)
    assert palette.explained == pytest.approx(1.0)
    colours = {
        tuple(np.asarray(palette.paint(np.broadcast_to(kind[:, None, None], (16, 2, 2)), (2, 2)))[0, 0]) for kind in kinds
    }
    assert len(colours) == 3


def test_a_drawing_leaves_out_what_a_longer_way_implies():
    parents = {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["a", "c"]}
    assert reduced(parents) == {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}
    assert layers_of(parents) == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_boxes_of_the_drawing_do_not_overlap():
    parents = {"a": (), "b": ("a",), "c": ("a",), "d": ("a",), "e": ("b",), "f": ("e", "c", "d"), "g": ("d",)}
    svg = dag([Node(name, "0" * 12, ups) for name, ups in parents.items()])
    boxes = [tuple(map(float, box)) for box in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="(\d+)" height="(\d+)"', svg)]
    width = float(re.search(r'viewBox="0 0 (\d+)', svg)[1])  # type: ignore[index]
    assert len(boxes) == 7 and all(x >= 0 and x + w <= width + 1 for x, _, w, _ in boxes)
    for n, (x, y, w, h) in enumerate(boxes):
        assert not any(abs(x - a) < w and abs(y - b) < h for a, b, _, _ in boxes[:n])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 599.0), (-3.0, 4.0), (0.31, 0.33), (0.0, 2e-5)])
def test_ticks_are_few_and_inside(low, high):
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 7 and low <= min(ticks) and max(ticks) <= high + 1e-9


@pytest.mark.parametrize(("low", "high"), [(0.3, 5.0), (1e-6, 1e3), (0.011, 0.9)])
def test_logarithmic_ticks_are_few_and_inside(low, high):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7 and low <= min(ticks) and max(ticks) <= high


def test_smoothing_keeps_a_constant_and_halves_no_end():
    assert smoothed(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    assert smoothed(np.arange(500.0))[250] == pytest.approx(250.0)


def test_a_plot_shows_the_whole_curve_and_its_levels_inside_its_frame():
    steps = np.arange(300.0)
    svg = curve(steps, 5 * np.exp(-steps / 40) + 0.01 * np.sin(steps), label="a <loss>")
    assert "a &lt;loss&gt;" in svg
    (points,) = re.findall(r'class="smooth" d="M([^"]+)"', svg)
    xs, ys = np.array([point.split(",") for point in points.split(" ")], float).T
    assert (np.diff(xs) > 0).all() and xs[-1] - xs[0] > 250
    assert ys.min() >= 0 and ys.max() <= 176 and ys[-1] > ys[0]
    assert len(xs) == 300


def test_a_plot_of_one_step_can_be_drawn():
    assert 'class="smooth"' in curve(np.array([0.0]), np.array([1.0]))
