"""Where what stands in the rows of EVEv2, and how large its pictures are."""

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.config import fingerprint
from schemas.errors import DataError
from student.config import StudentConfig
from student.eve.layout import CLASS, SPLIT, picture_size
from student.sequence import IGNORED, NO_PROMPT, collate, encode
from tests.student.eve import reference
from tests.student.eve.micro import eve_config, eve_mixed
from tests.student.micro import micro_config, micro_vocabulary, picture, square

USER = "<|im_start|>user\n"


def encoded(rng: np.random.Generator, **settings):
    """About a picture that is read as 2 rows of 3 patches."""
    config = eve_config(eve={"channels": 6, "side": 16})
    return encode(micro_vocabulary(), config, **({"image": picture(rng, 20, 30)} | settings))


def test_the_row_of_a_dialogue(rng):
    example = encoded(rng, turns=[(" What is it? ", " A square. "), ("Sure?", "Yes.")])
    assert example.grid == (2, 3)
    vocabulary = micro_vocabulary()
    before = vocabulary.encode(USER)
    picture_index = [CLASS, 0, 1, 2, SPLIT, 3, 4, 5, SPLIT]
    said = "\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA square.<|im_end|>"
    more = "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    behind = len(example.tokens_L) - len(before) - 9
    assert example.tokens_L[: len(before)].tolist() == before
    assert vocabulary.decode(example.tokens_L[-behind:]) == said + more
    assert example.patch_index_L.tolist() == [-1] * len(before) + picture_index + [-1] * behind
    seen = [NO_PROMPT if index >= 0 else -1 for index in picture_index]
    assert example.prompt_index_L.tolist() == [-1] * len(before) + seen + [-1] * behind
    supervised = example.labels_L != IGNORED
    assert vocabulary.decode(example.labels_L[supervised]) == "A square.<|im_end|>Yes.<|im_end|>"
    np.testing.assert_array_equal(example.labels_L[supervised], example.tokens_L[supervised])
    np.testing.assert_array_equal(example.positions_3L, [range(len(example.tokens_L))] * 3)
    assert collate([example]).spans[0].block == 0, "nothing sees what comes after it"


def test_without_a_picture_there_is_text_alone(rng):
    example = encoded(rng, image=None, turns=[("Red?", "It is."), ("Where?", None)], prefix_answer="It is [SEG]")
    chat = f"{USER}Red?<|im_end|>\n<|im_start|>assistant\nIt is.<|im_end|>\n{USER}Where?<|im_end|>\n<|im_start|>assistant\n"
    assert micro_vocabulary().decode(example.tokens_L) == chat + "It is [SEG]"
    assert (example.patch_index_L == -1).all()


def test_the_smallest_prompt_wins_a_shared_patch(rng):
    large, small = square(20, 30, 0, 0, 18), square(20, 30, 0, 0, 5)
    for prompts in ([(0, large), (2, small)], [(2, small), (0, large)]):
        for answer in ("It.", None):
            example = encoded(rng, turns=[("What is <Prompt2>?", answer)], prompts=prompts)
            assert example.prompt_index_L[example.patch_index_L >= 0].tolist() == [2, 0, NO_PROMPT, 0, 0, NO_PROMPT]
            assert (example.prompt_index_L[example.patch_index_L < 0] == -1).all()


def test_turns_that_do_not_fit_are_left_out_with_their_masks(rng):
    settings = {
        "turns": [("One?", "It is [SEG]."), ("Two?", "[SEG] and [SEG].")],
        "masks": [square(32, 48, k, k, 5) for k in range(3)],
        "image": picture(rng, 32, 48),
        "sample_id": "s7",
    }
    whole = encode(micro_vocabulary(), eve_config(), **settings)
    cut = encode(micro_vocabulary(), eve_config(max_length=len(whole.tokens_L) - 1), **settings)
    assert (cut.dropped, len(cut.masks_nHW)) == (1, 1)
    np.testing.assert_array_equal(cut.tokens_L, whole.tokens_L[: len(cut.tokens_L)])
    np.testing.assert_array_equal(cut.patch_index_L, whole.patch_index_L[: len(cut.tokens_L)])
    with pytest.raises(DataError, match=r"sample s7: the first turn ends at token"):
        encode(micro_vocabulary(), eve_config(max_length=len(cut.tokens_L) - 1), **settings)


def test_patches_are_counted_on_and_what_stands_around_them_stays(rng):
    examples = eve_mixed(rng)
    batch = collate(examples)
    for span, example in zip(batch.spans, examples, strict=True):
        index = batch.patch_index_R[span.rows]
        np.testing.assert_array_equal(batch.patches_NP[index[index >= 0]].numpy(), example.patches_NP)
        np.testing.assert_array_equal(index[index < 0], example.patch_index_L[example.patch_index_L < 0])
        assert span.block == 0


@pytest.mark.parametrize(
    ("size", "expected", "tokens"),
    [
        ((640, 480), (928, 704), 1 + 22 * 30),
        ((640, 427), (992, 672), 1 + 21 * 32),
        ((800, 800), (800, 800), 1 + 25 * 26),
        ((400, 400), (800, 800), 1 + 25 * 26),
        ((1600, 400), (1600, 416), 1 + 13 * 51),
        ((3000, 50), (6208, 128), 1 + 4 * 195),
        ((10, 20), (576, 1152), 1 + 36 * 19),
        ((4000, 1), (50624, 32), 1 + 1583),
    ],
)
def test_sizes_of_the_full_student(size, expected, tokens):
    width, height = picture_size(*size, patch=32, side=800)
    assert (width, height) == expected
    assert 1 + height // 32 * (width // 32 + 1) == tokens


def test_every_size_of_a_picture(rng):
    for width, height in rng.integers(1, 3000, (500, 2)).tolist():
        assert picture_size(width, height, 32, 800) == reference.picture_size(width, height, 32, 800)


def test_a_student_without_it_keeps_its_name():
    assert "eve" not in micro_config().identity()
    assert eve_config().identity()["eve"] == {"channels": 6, "side": 24}
    assert fingerprint(StudentConfig().identity()) == "4743c8906778b95791533a105c4704d4"


def test_the_side_of_others_means_nothing():
    """And where a picture takes too many tokens, it is not what is to be lowered."""
    assert eve_config(max_side=60).max_side == 60
    with pytest.raises(DataError, match=r"lower student\.eve\.side, or"):
        encode(micro_vocabulary(), eve_config(max_length=9), turns=[("What?", "It.")], sample_id="s7")
    with pytest.raises(DataError, match=r"lower student\.max_side, or"):
        encode(micro_vocabulary(), micro_config(max_length=9), turns=[("What?", "It.")], sample_id="s7")


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"patch": 7, "max_side": 70, "mask_stride": 7}, "patch = 7 must be even"),
        ({"prompting": "pooled"}, 'prompting = "pooled" is no part of EVEv2'),
        ({"compat": "paper"}, 'student.compat = "paper" is not known of EVEv2'),
        ({"eve": {"side": 0}}, "side"),
    ],
)
def test_what_the_layout_has_not_is_refused(over, message):
    with pytest.raises(ValidationError, match=message):
        eve_config(**over)
