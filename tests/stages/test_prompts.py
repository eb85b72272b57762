import numpy as np
import pytest

from schemas.marks import interior_points
from schemas.regions import Rle, Segment, VisualPrompt
from schemas.tables import SEGMENTS, revive
from stages.prompts import PromptsStage


def disk(height: int, width: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2


def segment(number: int, mask: np.ndarray, *, crowd: bool = False) -> Segment:
    return Segment(number, "cup", True, crowd, 1.0, "instances", Rle.of(mask), "a red cup")


def drawn(stage: PromptsStage, *segments: Segment, key: str = "k") -> list[VisualPrompt]:
    table = stage.draw({"segments": SEGMENTS.rows([{"image_key": key, "segments": list(segments)}])})
    return revive(list[VisualPrompt], table.to_pylist()[0]["prompts"])


@pytest.mark.parametrize("mask", [disk(60, 80, 20), disk(60, 80, 1.0), np.ones((1, 1), bool), np.ones((40, 1), bool)])
def test_every_mark_covers_something_of_its_segment(mask):
    for prompt in drawn(PromptsStage(), segment(7, mask)):
        marked = prompt.rle.mask()
        assert marked.any()
        assert (prompt.segment_id, prompt.text) == (7, "a red cup")
        if prompt.kind == "box":
            assert not (mask & ~marked).any()
        else:
            assert not (marked & ~mask).any()


def test_coordinates_are_those_of_the_mark():
    prompts = {p.kind: p for p in drawn(PromptsStage(), segment(1, disk(60, 80, 20)))}
    x, y = (int(value) for value in prompts["point"].coordinates)
    assert prompts["point"].rle.mask()[y, x] and prompts["point"].rle.area == 1
    assert list(prompts["box"].coordinates) == list(segment(1, disk(60, 80, 20)).rle.box)
    assert len(prompts["scribble"].coordinates) == 8
    assert list(prompts["mask"].coordinates) == []


def test_marks_depend_on_seed_image_and_segment_alone():
    one, two = segment(1, disk(60, 80, 20)), segment(2, disk(60, 80, 25))
    assert drawn(PromptsStage(), one, two)[4:] == drawn(PromptsStage(), two)
    others = [drawn(PromptsStage(seed=1), one), drawn(PromptsStage(), one, key="other")]
    assert all(other != drawn(PromptsStage(), one) for other in others)


def test_points_keep_away_from_the_edge(rng):
    mask = disk(60, 80, 20)
    points = interior_points(mask, 200, 6, rng)
    distance = np.hypot(points[:, 1] - 30, points[:, 0] - 40)
    assert distance.max() < 20 - 6 + 1.5


def test_crowds_and_empty_segments_are_not_pointed_at():
    assert drawn(PromptsStage(), segment(1, disk(9, 9, 3), crowd=True), segment(2, np.zeros((9, 9), bool))) == []
