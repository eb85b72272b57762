"""Scores on masks and texts small enough to count by hand, and on the numbers of the reference implementations."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from schemas.errors import MissingLibrary
from student.metrics.caption import bleu, caption_scores, cider, meteor, paper_meteor, paper_words, rouge_l, words
from student.metrics.choice import choice_scores, is_right, options, picked
from student.metrics.perbench import overall
from student.metrics.segmentation import overlap, paper_reference_scores, segmentation_scores
from tests.sample import sample_of


def mask(rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows.split()])


EMPTY = mask("... ...")


def test_ciou_sums_pixels_and_giou_averages_expressions():
    pairs = [overlap(mask("##. ..."), mask("### ...")), overlap(mask("... ..#"), mask("#.. ..."))]
    scores = segmentation_scores(pairs)
    assert scores["ciou"] == pytest.approx(2 / 5)
    assert scores["giou"] == pytest.approx((2 / 3 + 0) / 2, abs=1e-4)
    assert scores["precision"] == 0.5
    assert scores["t_acc"] == 1.0
    assert "n_acc" not in scores


def test_an_expression_without_target_wants_an_empty_mask():
    right, wrong = overlap(EMPTY, EMPTY), overlap(mask("#.. ..."), EMPTY)
    scores = segmentation_scores([right, wrong])
    assert scores == {"ciou": 0.0, "giou": pytest.approx(0.5), "n_acc": 0.5}


def test_a_missing_mask_counts_as_empty():
    scores = segmentation_scores([overlap(None, mask("##. ...")), overlap(mask("##. ..."), mask("##. ..."))])
    assert scores["ciou"] == pytest.approx(0.5)
    assert scores["giou"] == pytest.approx(0.5, abs=1e-4)
    assert scores["t_acc"] == 0.5


def test_the_authors_skip_a_missing_mask_and_divide_by_the_number_of_targets():
    missing, empty = overlap(None, mask("##. ...")), overlap(None, EMPTY)
    half, both = overlap(mask("#.. ..."), mask("##. ...")), overlap(mask("##. ..."), mask("##. ..."))
    scores = paper_reference_scores([missing, empty, half, replace(both, targets=2)])
    assert scores["ciou_paper"] == pytest.approx(3 / 4)
    assert scores["giou_paper"] == pytest.approx((0 + 0 + 1 / 2 + 1 / 2) / 4, abs=1e-4)
    assert paper_reference_scores([missing]) == {"ciou_paper": 0.0, "giou_paper": 0.0}


def test_ignored_pixels_are_in_neither_mask():
    pair = overlap(mask("##. ..."), mask("#.# ..."), void_HW=mask(".## ..."))
    assert (pair.intersection, pair.union, pair.target) == (1, 1, 1)


def test_nothing_to_score_is_no_score():
    assert segmentation_scores([]) == paper_reference_scores([]) == {}
    assert choice_scores([]) == {}
    assert caption_scores([], []) == {}


def test_words_are_what_a_caption_says():
    assert words('<Prompt0>: "A large, red box"; it\'s [SEG] left.<|endoftext|>') == [
        "a",
        "large",
        "red",
        "box",
        "it's",
        "left",
    ]


@pytest.mark.sample
def test_captions_score_as_in_the_reference_implementation():
    folder = sample_of("metric_fixtures") / "nlg_eval"
    lines = {name: (folder / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")}
    expected = json.loads((folder / "expected.json").read_text())["files"]
    said = list(map(words, lines["hyp"]))
    known = [list(map(words, pair)) for pair in zip(lines["ref1"], lines["ref2"], strict=True)]
    assert cider(said, known) == pytest.approx(expected["CIDEr"], abs=1e-6)
    assert rouge_l(said, known) == pytest.approx(expected["ROUGE_L"], abs=1e-6)
    assert bleu(said, known) == pytest.approx([expected[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-6)


def test_one_caption_scores_as_in_the_reference_implementation():
    """Numbers of Maluuba/nlg-eval's own test."""
    said, known = ["this is a good test"], [["this is a test", "this is also a test"]]
    scores = caption_scores(said, known)
    assert scores["rouge_l"] == pytest.approx(0.9070631, abs=1e-6)
    assert scores["bleu_4"] == pytest.approx(9.03602e-05, rel=1e-5)
    assert scores["cider"] == 0.0


def test_a_caption_of_nothing_scores_nothing():
    scores = caption_scores(["", "a red box"], [["a blue ball"], ["a red box"]])
    assert scores["rouge_l"] == pytest.approx(0.5)
    assert scores["cider"] == pytest.approx(5 * 3 / 4, abs=1e-6)  # three words: no 4-grams to agree on


def test_cider_rewards_the_rare_words():
    known = [["a red box"], ["a blue box"], ["a red ball"]]
    rare, frequent = ["a box blue", "", ""], ["a box", "", ""]
    swapped = [known[1], known[0], known[2]]
    assert cider(list(map(words, rare)), [list(map(words, t)) for t in swapped]) > cider(
        list(map(words, frequent)), [list(map(words, t)) for t in swapped]
    )


def has_wordnet() -> bool:
    try:
        from nltk.data import find

        find("corpora/wordnet")
    except (ImportError, LookupError):
        return False
    return True


def test_meteor_scores_or_says_what_is_missing():
    said, known = ["a red box on a blue ball"], ["a red box"]
    if has_wordnet():
        assert paper_meteor(said, known) < meteor(said, known) < 1
    else:
        for each in (meteor, paper_meteor):
            with pytest.raises(MissingLibrary, match="pip install nltk"):
                each(said, known)


SCORED = """
import json
from student.metrics.caption import meteor, paper_meteor
said, known = ["<Prompt0>: red box on blue ball"], ["<Prompt0>: red box"]
print(json.dumps([meteor(said, known), paper_meteor(said, known)]))
"""


def test_the_authors_meteor_has_prediction_and_reference_exchanged(tmp_path):
    """By a WordNet without a word, in a process that finds no other: two words match in one run, with their whole share of one
    text and 2 of 5 words of the other, or 2 of 6 with the colon."""
    reader = pytest.importorskip("nltk.corpus.reader.wordnet").WordNetCorpusReader
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for name in reader._FILES:
        (folder / name).touch()
    settings = os.environ | {"NLTK_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCORED], env=settings, capture_output=True, text=True, check=True)
    score = lambda precision, recall: precision * recall / (0.9 * precision + 0.1 * recall) * (1 - 0.5 / 2**3)  # noqa: E731
    assert json.loads(done.stdout) == pytest.approx([score(2 / 5, 1), score(1, 2 / 6)])


def test_the_authors_words_are_what_stands_between_blanks():
    assert paper_words('<Prompt0>: A large, "red" box.<|endoftext|>') == [":", "A", "large,", '"red"', "box."]


QUESTION = (
    "Answer according to <Prompt0>. Which is it? A. circle B. red circle C. a U.S. flag D. star Select the correct choice."
)


def test_options_are_read_without_the_instruction():
    assert options(QUESTION) == {"A": "circle", "B": "red circle", "C": "a U.S. flag", "D": "star"}
    assert options("Which is it? (A) one (B) two") == {"A": "one", "B": "two"}
    assert options("What is it?") == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B. red circle", "B"),
        ("B", "B"),
        ("(C)", "C"),
        ("<Prompt0>: D. star<|endoftext|>", "D"),
        ("The answer is B", "B"),
        ("The answer is a red circle", "B"),
        ("the circle", "A"),
        ("It is a star.", "D"),
        ("star or circle", None),
        ("E. none of them", None),
        ("A blue one", None),
        ("", None),
    ],
)
def test_the_picked_option(answer: str, letter: str | None):
    assert picked(answer, options(QUESTION)) == letter


def test_accuracy_reads_the_option_where_the_paper_looks_for_a_substring():
    cases = [(QUESTION, "A", "A. circle"), (QUESTION, "A", "Alas, D. star"), (QUESTION, "B. red circle", "red circle")]
    assert choice_scores(cases) == {"accuracy": pytest.approx(2 / 3), "accuracy_paper": pytest.approx(2 / 3)}
    assert choice_scores(cases[1:2]) == {"accuracy": 0.0, "accuracy_paper": 1.0}
    assert [is_right(*case) for case in cases] == [True, False, True]


def test_a_question_without_options_wants_the_same_words():
    assert is_right("What colour?", "Dark red.", "dark red")
    assert not is_right("What colour?", "Dark red.", "red")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((13.4, 0.12, 0, 0), 8.5),
        ((19.2, 0.71, 31.9, 21.9), 39.0),
        ((21.4, 0.69, 29.7, 19.8), 38.4),
        ((24.2, 0.74, 33.4, 23.5), 42.2),
    ],
)
def test_overall_gives_the_rows_of_the_paper(row: tuple[float, ...], expected: float):
    caption, accuracy, ciou, giou = row
    assert overall(caption / 100, accuracy, ciou / 100, giou / 100) == pytest.approx(expected, abs=0.05)
