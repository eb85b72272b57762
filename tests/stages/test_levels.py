"""Pixels to which more is to be said than in or out, from the annotation files to the scores: what lies there twice, as the
release counts it, and what is void."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from schemas.artifact import Artifact
from schemas.dialogue import Sample
from schemas.regions import VOID, Level, Rle, valued
from schemas.storage import Folder
from schemas.tables import ANNOTATIONS, PREDICTIONS, SEGMENTS, Table, plain, revive
from stages.predict import prediction
from stages.prompts import PromptsStage
from stages.report.reading import Prediction, Spot, read_predictions
from stages.report.scores import of, overlap_of, paper_overlap_of
from stages.samples import SamplesStage
from stages.sources.draft import Draft
from student.generate import Generated
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
    said = {name: getattr(draft, name) for name in ANNOTATIONS.schema.names if name not in row}
    prompts = PromptsStage().draw({"segments": SEGMENTS.rows([{"image_key": "k", "segments": draft.objects}])})
    stage = SamplesStage(tasks=("segmentation", "reference", "conversation", "caption"), **settings)
    return revive(list[Sample], stage.write({"annotations": ANNOTATIONS.rows([row | said]), "prompts": prompts}).to_pylist())


def values(sample: Sample, mask: int) -> np.ndarray:
    return valued(sample.masks[mask], sample.levels[mask] if sample.levels else [])


def test_what_polygons_of_an_object_cover_twice_comes_with_its_target(files: Files):
    files.add("refs", "refs.p", [reference(2, "the once"), reference(1, "the twice")])
    (sample,) = dialogues(files.draft())
    twice = next(n for n, turn in enumerate(sample.turns) if "twice" in turn.question)
    assert np.array_equal(values(sample, twice), columns(0, 20).astype(int) + columns(10, 25))
    assert np.array_equal(values(sample, 1 - twice), columns(15, 30))
    assert sample.levels[twice] == [Level(2, Rle.of(columns(10, 20)))]


@pytest.mark.parametrize(("split", "is_summed"), [("train", True), ("val", False)])
def test_of_several_objects_the_release_sums_the_objects_and_only_to_learn_from(files: Files, split: str, is_summed: bool):
    files.add("refs", "grefs.json", [reference([1, 2], "both", split=split)])
    (sample,) = dialogues(files.draft())
    assert np.array_equal(sample.masks[0].mask(), columns(0, 30))
    assert np.array_equal(values(sample, 0), columns(0, 30).astype(int) + is_summed * columns(15, 25))


def test_levels_are_of_a_statement_and_not_of_the_object_that_it_shares(files: Files):
    record = {"file_name": NAME, "width": WIDTH, "height": HEIGHT}
    targets = [{"segmentation": each, "category_name": "cat"} for each in (LEFT_AND_MORE, rle(columns(0, 25)))]
    files.add("muse", "muse.json", [record | {"questions": ["Which?"], "answers": [targets]}], split="train")
    phrase = {"token_positives": [2, 5], "rle_masks": [rle(columns(15, 30))] * 2}
    files.add("grounded", "grand.json", [record | {"caption": "a cat", "groundings": {"cat": phrase}}], split="train")
    files.add("refs", "refs.p", [reference(2, "the middle one")])
    draft = files.draft()
    assert len(draft.objects) == 2
    segmented, grounded, asked = sorted(dialogues(draft), key=lambda sample: (sample.task, -len(sample.masks)))
    assert np.array_equal(values(segmented, 0), columns(0, 20).astype(int) + columns(10, 25))
    assert np.array_equal(values(segmented, 1), columns(0, 25))
    assert np.array_equal(values(grounded, 0), 2 * columns(15, 30))
    assert (np.array_equal(values(asked, 0), columns(15, 30)), asked.levels) == (True, [])


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
    return Prediction(Spot(0, "k"), "a", sample.task, **said, targets=sample.masks, masks=masks, levels=sample.levels)


def test_what_is_void_is_no_part_of_a_score_but_a_border_in_the_release(files: Files):
    sample = reasoned(files)
    assert [[level.value for level in own] for own in sample.levels] == [[VOID]]
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
    assert "ciou_paper" not in of([replace(right, levels=[])])["segmentation"]


def test_captions_are_asked_of_regions_with_holes_in_the_release(files: Files):
    for split in ("train", "val"):
        files.add("short_captions", f"{split}.p", [reference(1, "the twice", split=split)], name=split)
        files.fields["short_captions"] = files.fields["short_captions"][-1:]
        for compat, hole in (("correct", False), ("paper", split == "val")):
            (sample,) = dialogues(files.draft(), compat=compat)
            assert np.array_equal(sample.prompts[0].rle.mask(), columns(0, 25) & ~(columns(10, 20) & hole))


@pytest.mark.parametrize("columns_are_there", [True, False])
def test_levels_go_through_the_table_of_answers_which_once_had_none(files: Files, tmp_path, columns_are_there: bool):
    sample = reasoned(files)
    logits_nhw = torch.from_numpy(np.where(columns(5, 20), 9.0, -9.0).astype(np.float32))[None]
    rows = PREDICTIONS.rows([prediction(sample, Generated("[SEG]", [], logits_nhw))])
    old = rows if columns_are_there else rows.drop_columns(["levels"])
    table = Table("predictions", 1, old.schema, "parquet", "")
    made = Artifact(Folder(str(tmp_path / "answers")), {"of": "a test"}, table, 1)
    made.write(0, old)
    (answer,) = read_predictions(made)
    assert (answer.targets, answer.levels) == (sample.masks, sample.levels if columns_are_there else [])
    assert overlap_of(answer).iou == pytest.approx(1 if columns_are_there else 10 / 15, abs=1e-5)


def test_samples_of_before_there_were_levels_are_read(files: Files):
    files.add("refs", "refs.p", [reference(1, "the twice")])
    (sample,) = dialogues(files.draft())
    row = plain(sample)
    assert revive(Sample, row) == sample
    del row["levels"], row["references"]
    assert revive(Sample, row) == replace(sample, levels=[])
