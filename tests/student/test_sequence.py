import numpy as np
import pytest
import torch

from schemas.errors import DataError
from student.data.features import Stored
from student.layout import QwenLayout
from student.sequence import IGNORED, NO_PROMPT, collate, encode
from tests.student.micro import micro_config, micro_vocabulary, picture, pointed, spoken, square

LAYOUT = QwenLayout(micro_config(), micro_vocabulary())


def encoded(rng, **settings):
    return encode(micro_vocabulary(), micro_config(), **({"image": picture(rng, 32, 48)} | settings))


def test_the_layout_of_a_dialogue(rng):
    example = encoded(rng, turns=[(" What is it? ", " A square. "), ("Sure?", "Yes.")])
    text = micro_vocabulary().decode(example.tokens_L)
    asked = (
        "<|im_start|>user\nWhat is it?<|im_end|>\nA square.<|endoftext|><|im_start|>user\nSure?<|im_end|>\nYes.<|endoftext|>"
    )
    assert text == "<vision>" + "<vpatch>" * 6 + "</vision>" + asked
    supervised = example.labels_L[example.labels_L != IGNORED]
    assert micro_vocabulary().decode(supervised) == "A square.<|endoftext|>Yes.<|endoftext|>"
    chosen = example.labels_L != IGNORED
    np.testing.assert_array_equal(example.labels_L[chosen], example.tokens_L[chosen])
    assert example.patch_index_L[:9].tolist() == [-1, 0, 1, 2, 3, 4, 5, -1, -1]
    assert example.prompt_index_L[:9].tolist() == [-1, -2, -2, -2, -2, -2, -2, -1, -1]


def test_a_question_is_left_open_after_the_beginning_of_its_answer(rng):
    example = encoded(rng, turns=[("Where?", None)], prefix_answer="It is [SEG]")
    assert micro_vocabulary().decode(example.tokens_L[8:]) == "<|im_start|>user\nWhere?<|im_end|>\nIt is [SEG]"
    assert (example.labels_L == IGNORED).all()


def test_positions_of_the_reference_example():
    assert LAYOUT.positions(12, (2, 3)).tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5, 6, 7, 8],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7, 8],
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8],
    ]


@pytest.mark.parametrize("grid", [None, (1, 1), (4, 2), (3, 7)])
def test_positions_token_by_token(grid):
    patches = grid[0] * grid[1] if grid else 0
    length = patches + 9
    found = LAYOUT.positions(length, grid)
    for i in range(length):
        if grid is None or i < 1:
            expected = [i, i, i]
        elif i <= patches:
            expected = [1, 1 + (i - 1) // grid[1], 1 + (i - 1) % grid[1]]
        else:
            expected = [1 + max(grid) + i - patches - 1] * 3
        assert found[:, i].tolist() == expected


def test_the_smallest_prompt_wins_a_shared_patch(rng):
    large, small = square(32, 48, 0, 0, 30), square(32, 48, 0, 0, 5)
    for prompts in ([(0, large), (2, small)], [(2, small), (0, large)]):
        example = encoded(rng, turns=[("What is <Prompt2>?", "It.")], prompts=prompts)
        assert example.prompt_index_L[1:7].tolist() == [2, 0, NO_PROMPT, 0, 0, NO_PROMPT]


def test_the_release_encodes_the_space_around_a_question():
    asked = lambda text, compat: encode(micro_vocabulary(), micro_config(compat=compat), turns=[(text, None)]).tokens_L  # noqa: E731
    np.testing.assert_array_equal(asked(" Where?", "correct"), asked("Where?", "correct"))
    np.testing.assert_array_equal(asked("Where?", "paper"), asked("Where?", "correct"))
    assert len(asked(" Where?", "paper")) > len(asked("Where?", "paper"))


def test_the_release_takes_prompts_as_they_come_when_it_is_asked(rng):
    large, small = square(32, 48, 0, 0, 30), square(32, 48, 0, 0, 5)
    settings = {"image": picture(rng, 32, 48), "prompts": [(2, small), (0, large)]}
    release = lambda answer: encode(  # noqa: E731
        micro_vocabulary(), micro_config(compat="paper"), turns=[("What is <Prompt2>?", answer)], **settings
    )
    assert release(None).prompt_index_L[1:7].tolist() == [0, 0, NO_PROMPT, 0, 0, NO_PROMPT]
    assert release("It.").prompt_index_L[1:7].tolist() == [2, 0, NO_PROMPT, 0, 0, NO_PROMPT]


def test_turns_that_do_not_fit_are_left_out_with_their_masks(rng):
    settings = {
        "turns": [("One?", "It is [SEG]."), ("Two?", "[SEG] and [SEG]."), ("Three?", "Yes.")],
        "masks": [square(32, 48, k, k, 5) for k in range(3)],
        "image": picture(rng, 32, 48),
    }
    whole = encode(micro_vocabulary(), micro_config(), **settings)
    assert (whole.dropped, len(whole.masks_nHW)) == (0, 3)
    cut = encode(micro_vocabulary(), micro_config(max_length=len(whole.tokens_L) - 1), **settings)
    assert (cut.dropped, len(cut.masks_nHW)) == (1, 3)
    assert encode(micro_vocabulary(), micro_config(max_length=len(cut.tokens_L)), **settings).dropped == 1
    shorter = encode(micro_vocabulary(), micro_config(max_length=len(cut.tokens_L) - 1), **settings)
    assert (shorter.dropped, len(shorter.masks_nHW)) == (2, 1)
    assert (shorter.labels_L == micro_vocabulary().seg).sum() == 1
    np.testing.assert_array_equal(shorter.tokens_L, whole.tokens_L[: len(shorter.tokens_L)])
    assert collate([cut, shorter]).dropped == 3
    with pytest.raises(DataError, match=r"sample s7: the first turn ends at token"):
        encode(micro_vocabulary(), micro_config(max_length=len(shorter.tokens_L) - 1), sample_id="s7", **settings)


def test_the_release_cuts_a_long_dialogue_anywhere_and_then_learns_none_of_its_masks(rng):
    settings = {
        "turns": [("One?", "It is [SEG]."), ("Two?", "[SEG] and red.")],
        "masks": [square(32, 48, k, k, 5) for k in range(2)],
        "image": picture(rng, 32, 48),
        "sample_id": "s7",
    }
    whole = encode(micro_vocabulary(), micro_config(), **settings)
    config_of = lambda length: micro_config(compat="paper", max_length=length)  # noqa: E731
    release = lambda length: encode(micro_vocabulary(), config_of(length), **settings)  # noqa: E731
    first, second = np.flatnonzero(whole.labels_L == micro_vocabulary().seg)
    for length, masks, dropped in [(second + 3, 2, 1), (second + 1, 2, 1), (second, 1, 1), (first + 1, 1, 2), (first, 0, 2)]:
        cut = release(length)
        assert (len(cut.masks_nHW), cut.dropped, cut.unpaired) == (masks, dropped, masks < 2)
        for name in ("tokens_L", "labels_L", "patch_index_L", "prompt_index_L"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:length])
        np.testing.assert_array_equal(cut.positions_3L, whole.positions_3L[:, :length])
    assert not release(len(whole.tokens_L)).unpaired
    assert collate([cut, whole]).unpaired == (True, False)
    begins = np.flatnonzero(whole.labels_L != IGNORED)[0]
    with pytest.raises(DataError, match=r"sample s7: the first turn ends at token"):
        release(begins)


MASK = square(32, 48, 4, 4, 8)
REFUSED = {
    r"1 \[SEG\] in the answers but 0 masks": {"turns": [("Where?", "It is [SEG].")]},
    r"0 \[SEG\] in the answers but 1 masks": {"turns": [("Where is [SEG]?", "There.")], "masks": [MASK]},
    r"shape \(48, 32\) on an image of shape \(32, 48\)": {"turns": [("Where?", "[SEG]")], "masks": [MASK.T]},
    r"on an image of shape None": {"turns": [("Where?", "[SEG]")], "masks": [MASK], "image": None},
    r"prompt 3 of a student with 3 prompts": {"turns": [("What?", "It.")], "prompts": [(3, MASK)]},
    r"prompt 1 marks no pixel": {"turns": [("What?", "It.")], "prompts": [(1, MASK & False)]},
    r"no turns": {"turns": []},
}


@pytest.mark.parametrize(("message", "settings"), REFUSED.items(), ids=list(REFUSED))
def test_what_cannot_be_encoded_names_its_sample(rng, message, settings):
    with pytest.raises(DataError, match=rf"sample s7: .*{message}"):
        encoded(rng, sample_id="s7", **settings)


def test_samples_lie_one_behind_the_other_and_their_patches_are_counted_on(rng):
    examples = [pointed(rng, 32, 48, 1), spoken(), pointed(rng, 64, 16, 0), pointed(rng, 16, 16, 1)]
    batch = collate(examples)
    assert len(batch.patches_NP) == 6 + 0 + 4 + 1
    assert [span.block for span in batch.spans] == [8, 0, 6, 3]
    assert len(batch.tokens_R) == sum(len(example.tokens_L) for example in examples)
    for span, example in zip(batch.spans, examples, strict=True):
        index = batch.patch_index_R[span.rows]
        np.testing.assert_array_equal(batch.patches_NP[index[index >= 0]].numpy(), example.patches_NP)
        np.testing.assert_array_equal(batch.tokens_R[span.rows], example.tokens_L)
        np.testing.assert_array_equal(batch.labels_R[span.rows], example.labels_L)
        np.testing.assert_array_equal(batch.prompt_index_R[span.rows], example.prompt_index_L)
        np.testing.assert_array_equal(batch.positions_3R[:, span.rows], example.positions_3L)


def test_moving_a_batch_moves_every_tensor(rng):
    stored = Stored((3, 3), torch.zeros(2, 3, 3, dtype=torch.int8), torch.ones(2))
    batch = collate([pointed(rng, 32, 48, 1, features={"sam2": stored})]).to("meta")
    tensors = [batch.tokens_R, batch.patches_NP, batch.masks[0], batch.features[0]["sam2"].values, batch.positions_3R]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.grids == ((2, 3),)


def test_labels_move_one_place_within_their_sample(rng):
    examples = [pointed(rng, 32, 48, 1), spoken()]
    batch = collate(examples)
    for span, example in zip(batch.spans, examples, strict=True):
        assert batch.next_labels_R[span.rows].tolist() == [*example.labels_L[1:].tolist(), IGNORED]
