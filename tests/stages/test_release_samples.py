"""`samples.compat`: dialogues as the authors' release has them, beside our own."""

from schemas.annotations import Choice, Expression
from stages.samples import SamplesStage
from student.metrics.choice import is_right
from tests.stages.test_samples import annotation, number_in, samples

EXPRESSIONS = [
    *(Expression(f"the cup {n}, {word}", [n], "train", "refs", reference=n) for n in (1, 2) for word in ("one", "two", "red")),
    *(Expression(f"the cup 2 {word}", [2], "train", "refs", reference=7) for word in ("again", "still")),
    Expression("the cup 9", [], "train", "refs"),
    Expression("the cup 9 again", [], "train", "refs"),
    Expression("both, cup 3", [1, 2], "train", "grefs", reference=1),
]


def test_the_release_has_all_references_of_a_picture_to_draw_from():
    said = annotation("k", expressions=EXPRESSIONS)
    released, ours = (samples(SamplesStage(compat=compat), said) for compat in ("paper", "correct"))
    assert [len(sample.turns) for sample in ours] == [5, 5, 1] and not any(sample.references for sample in ours)
    several, refs = sorted(released, key=lambda sample: len(sample.turns))
    assert (several.references, number_in(several.turns[0].question)) == ([0], 3)
    named = {}
    for turn, reference in zip(refs.turns, refs.references, strict=True):
        named.setdefault(reference, []).append(number_in(turn.question))
    assert sorted(named.values()) == [[1, 1, 1], [2, 2], [2, 2, 2], [9], [9]]


def test_what_is_no_reference_is_grouped_as_ever():
    classes = [Expression(f"all the cups {n}", [n], "train", "classes") for n in (1, 2, 3, 4)]
    stage = SamplesStage(compat="paper", turns=3, forms={"classes": "semantic"})
    made = samples(stage, annotation("k", expressions=classes))
    assert [(len(sample.turns), sample.references) for sample in made] == [(3, []), (1, [])]


def test_evaluation_has_the_spaces_of_the_authors_scripts():
    asked = annotation("k", "evaluation", choices=[Choice(1, "Which? A. red B. blue", "A. red", "evaluation", "c")])
    questions = {
        compat: {sample.task: sample.turns[0].question for sample in samples(SamplesStage(compat=compat), asked)}
        for compat in ("correct", "paper")
    }
    assert questions["correct"]["segmentation"].startswith("Please segment")
    assert questions["paper"]["segmentation"] == " " + questions["correct"]["segmentation"]
    assert questions["correct"]["choice"].endswith("B. blue Select the correct choice.")
    assert questions["paper"]["choice"].endswith("B. blueSelect the correct choice.")
    for question in (questions["correct"]["choice"], questions["paper"]["choice"]):
        assert is_right(question, "B. blue", "It is blue.") and not is_right(question, "B. blue", "It is red.")
    trained = [samples(SamplesStage(compat=compat, turns=1), annotation("k"))[0].turns[0] for compat in ("correct", "paper")]
    assert not trained[1].question.startswith(" ")
