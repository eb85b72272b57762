"""Pixels to which more is to be said than in or out, from the annotation files to the scores: what lies there twice, as the
release counts it, and what is void."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.dialogue import Sample
from schemas.regions import VOID, Layer, Rle, valued
from schemas.tables import ANNOTATIONS, SEGMENTS, plain, revive
from stages.prompts import PromptsStage
from stages.report.reading import Prediction, Spot
from stages.report.scores import of, overlap_of, paper_overlap_of
from stages.samples import SamplesStage
from stages.sources.draft import Draft
from tests.stages.annotated import HEIGHT, NAME, WIDTH, Files, annotation, coco, reference, rle

LEFT_AND_MORE = [[0, 0, 20, 0, 20, 30, 0, 30], [10, 0, 25, 0, 25, 30, 10, 30]]  # ten columns of it are covered twice
MIDDLE = [[15, 0, 30, 0, 30, 30, 15, 30]]


@pytest.fixture
def files(tmp_path) -> Files:
    twice, once = annotation(1, segmentation=LEFT_AND_MORE), annotation(2, segmentation=MIDDLE)
    return Files(tmp_path).add("instances", "instances.json", coco([twice, once]))


def columns(first: int, end: int) -> np.ndarray:
    mask_HW = np.zeros((HEIGHT, WIDTH), bool)
    mask_HW[:, first:end] = True
    return mask_HW


def dialogues(draft: Draft, **settings: Any) -> list[Sample]:
    row = {"image_key": "k", "width": WIDTH, "height": HEIGHT, "error": None}
    said = {name: getattr(draft, name) for name in ANNOTATIONS.schema.names if hasattr(draft, name) and name not in row}
    prompts = PromptsStage().draw({"segments": SEGMENTS.rows([{"image_key": "k", "segments": draft.objects}])})
    stage = SamplesStage(tasks=("segmentation", "reference", "conversation"), **settings)
    return revive(list[Sample], stage.write({"annotations": ANNOTATIONS.rows([row | said]), "prompts": prompts}).to_pylist())


def values(sample: Sample, mask: int) -> np.ndarray:
    return valued(sample.masks[mask], [layer for layer in sample.layers if layer.of == mask])


def test_what_polygons_of_an_object_cover_twice_comes_with_its_target(files: Files):
    files.add("refs", "refs.p", [reference(2, "the once"), reference(1, "the twice")])
    draft = files.draft()
    assert draft.layers == [Layer(1, 2, Rle.of(columns(10, 20)))]
    (sample,) = dialogues(draft)
    twice = next(n for n, turn in enumerate(sample.turns) if "twice" in turn.question)
    assert np.array_equal(values(sample, twice), columns(0, 20).astype(int) + columns(10, 25))
    assert np.array_equal(values(sample, 1 - twice), columns(15, 30))


@pytest.mark.parametrize(("split", "is_summed"), [("train", True), ("val", False)])
def test_of_several_objects_the_release_sums_the_objects_and_only_to_learn_from(files: Files, split: str, is_summed: bool):
    files.add("refs", "grefs.json", [reference([1, 2], "both", split=split)])
    (sample,) = dialogues(files.draft())
    assert np.array_equal(sample.masks[0].mask(), columns(0, 30))
    assert np.array_equal(values(sample, 0), columns(0, 30).astype(int) + is_summed * columns(15, 25))


def test_a_mask_of_muse_is_summed_and_one_of_a_class_is_not(files: Files):
    target = {"segmentation": LEFT_AND_MORE, "category_name": "cat"}
    record = {"file_name": NAME, "width": WIDTH, "height": HEIGHT, "questions": ["Which?"], "answers": [[target]]}
    files.add("muse", "muse.json", [record], split="train")
    (sample,) = dialogues(files.draft())
    assert np.array_equal(values(sample, 0), columns(0, 20).astype(int) + columns(10, 25))
    files.fields |= {"muse": [], "refs": []}
    files.add("refs", "refs.p", [reference(1, "all the cats")])
    (sample,) = dialogues(files.draft(), forms={"refs": "semantic"})
    assert (np.array_equal(values(sample, 0), columns(0, 25)), sample.layers) == (True, [])


def test_the_masks_of_a_phrase_are_summed(files: Files):
    phrase = {"token_positives": [2, 5], "rle_masks": [rle(columns(0, 20)), rle(columns(10, 25))]}
    record = {"file_name": NAME, "width": WIDTH, "height": HEIGHT, "caption": "a cat", "groundings": {"cat": phrase}}
    files.add("grounded", "grand.json", [record], split="train")
    (sample,) = dialogues(files.draft())
    assert np.array_equal(values(sample, 0), columns(0, 20).astype(int) + columns(10, 25))


def reasoned(files: Files) -> Sample:
    """Columns 5 to 14 are wanted, 15 to 19 void."""
    outline = lambda first, last: [[first, 0], [last, 0], [last, HEIGHT], [first, HEIGHT]]  # noqa: E731
    shapes = [{"label": "target", "points": outline(5, 14)}, {"label": "ignore", "points": outline(15, 19)}]
    (files.folder / "reason").mkdir()
    record = {"shapes": shapes, "text": ["the one"], "is_sentence": False}
    (files.folder / "reason" / "a.json").write_text(json.dumps(record))
    place = {"path": str(files.folder / "reason"), "split": "evaluation", "names": {"a.jpg": NAME}}
    files.fields["reasoning"] = [place]
    (sample,) = dialogues(files.draft())
    return sample


def answered(sample: Sample, *masks_HW: np.ndarray) -> Prediction:
    said = {"question": "?", "expected": "[SEG]", "text": "[SEG]"}
    masks = [Rle.of(mask_HW) for mask_HW in masks_HW]
    return Prediction(Spot(0, "k"), "a", sample.task, **said, targets=sample.masks, masks=masks, layers=sample.layers)


def test_what_is_void_is_no_part_of_a_score_but_a_border_in_the_release(files: Files):
    sample = reasoned(files)
    assert [(layer.of, layer.value) for layer in sample.layers] == [(0, VOID)]
    void_too = answered(sample, columns(5, 20))
    assert overlap_of(void_too).iou == pytest.approx(1, abs=1e-5)
    background = answered(sample, columns(5, 22))
    assert overlap_of(background).iou == pytest.approx(10 / 12, abs=1e-5)
    # 0 to 1 at column 5, 1 to 255 at 15, 255 to 0 at 20: three borders, of which the last begins what has no end
    paper = paper_overlap_of(answered(sample, columns(5, 15)))
    assert (paper.intersection, paper.target) == (10 * HEIGHT, (10 + 20) * HEIGHT)
    scores = of([void_too])["reference"]
    assert scores["ciou"] == pytest.approx(1) and scores["ciou_paper"] == pytest.approx(10 / 35)


def test_what_is_covered_twice_is_a_hole_in_the_targets_of_the_release(files: Files):
    files.add("refs", "refs.p", [reference(1, "the twice", split="val")])
    (sample,) = dialogues(files.draft())
    right = answered(sample, columns(0, 25))
    assert overlap_of(right).iou == pytest.approx(1, abs=1e-5)
    scores = of([right])["segmentation"]
    assert scores["ciou"] == pytest.approx(1) and scores["ciou_paper"] == pytest.approx(15 / 25)
    assert "ciou_paper" not in of([replace(right, layers=[])])["segmentation"]


def test_layers_are_stored_with_a_sample_and_an_answer(files: Files):
    sample = reasoned(files)
    assert revive(Sample, plain(sample)) == sample
