"""The parts that make the rungs of the paper's ladder: what the plain student does in place of upsampler and injection."""

import numpy as np
import pytest
import torch

from schemas.grids import PatchGrid
from student.config import LossConfig
from student.generate import generate
from student.losses import Distillation, losses
from student.model import PixelSail
from student.sequence import IGNORED, collate, encode
from tests.student.micro import micro_config, micro_vocabulary, picture, pointed, spoken, square

TIGHT = {"rtol": 1e-5, "atol": 1e-5}
PLAIN = {"prompting": "pooled", "mask_stride": 16}


def student(**over) -> PixelSail:
    return PixelSail(micro_config(**over), micro_vocabulary(), torch.Generator().manual_seed(0))


def asking(rng: np.random.Generator, *, answer: str | None, shift: int = 0):
    """A question about a marked region, after another one that it overlaps, and one about a mark that is not there."""
    marks = [(1, square(32, 48, 2, 3 + shift, 20)), (2, square(32, 48, 18, 18 + shift, 12))]
    turns = [("Is <Prompt1> left of <Prompt2>, or <Prompt0>?", "<Prompt1> is."), ("What is <Prompt2>?", answer)]
    return encode(micro_vocabulary(), micro_config(), turns=turns, image=picture(rng, 32, 48), prompts=marks, sample_id="a")


def embedded(model: PixelSail, batch) -> torch.Tensor:
    """What the first layer reads."""
    seen = []
    hook = model.single_transformer.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.states(batch)
    hook.remove()
    return seen[0].detach()


def test_a_pooled_prompt_is_the_mean_of_its_patches_where_a_question_names_it(rng):
    model = student(**PLAIN)
    vocabulary, decoder = micro_vocabulary(), model.single_transformer.model
    examples = [asking(rng, answer="A square."), spoken("And <Prompt1>?"), asking(rng, answer="<Prompt2>", shift=9)]
    found = embedded(model, collate(examples)).split([len(example.tokens_L) for example in examples])
    named = 0
    for example, found_LH in zip(examples, found, strict=True):
        for place, token in enumerate(example.tokens_L.tolist()):
            expected = decoder.embed_tokens.weight[token]
            if example.patch_index_L[place] >= 0:
                expected = expected + decoder.vis_embed(torch.from_numpy(example.patches_NP[example.patch_index_L[place]]))
            elif token in vocabulary.prompt_ids and example.labels_L[place] == IGNORED:
                covered = example.patch_index_L[example.prompt_index_L == vocabulary.prompt_ids.index(token)]
                if len(covered):
                    named += 1
                    expected = expected + decoder.vis_embed(torch.from_numpy(example.patches_NP[covered])).mean(dim=0)
            torch.testing.assert_close(found_LH[place], expected, **TIGHT)
    assert named == 6


def test_the_plain_student_has_neither_part_and_masks_on_its_patches(rng):
    model, full = student(**PLAIN), student()
    gone = full.state_dict().keys() - model.state_dict().keys()
    assert {name for name in gone if not name.startswith("upsample_blocks.")} == {"single_transformer.model.vp_embed.weight"}
    assert model.state_dict().keys() < full.state_dict().keys()
    output = model(collate([pointed(rng, 32, 48, 2)]))
    assert output.mask_features[0].shape == (12, 2, 3)
    expected = model.image_feature_projector(model.image_feature_pre_projector(output.patches[0]))
    torch.testing.assert_close(output.mask_features[0], expected.permute(2, 0, 1), **TIGHT)
    cells = model.config.patch // model.config.mask_stride
    assert PatchGrid(patch=16, max_side=64, cells=cells).of(48, 32) == output.mask_features[0].shape[1:]


@pytest.mark.parametrize("over", [PLAIN, {"prompting": "pooled"}, {"mask_stride": 16}], ids=["plain", "upsampler", "injection"])
def test_every_rung_learns_all_that_it_has(rng, over):
    """Every weight of every rung gets a gradient, and a batch gives what its samples give alone."""
    model = student(**over)
    examples = [pointed(rng, 32, 48, 2), asking(rng, answer="A red circle."), spoken(), pointed(rng, 48, 32, 0)]
    batch = collate(examples)
    loss = LossConfig(points=16)
    parts = losses(model(batch), batch, Distillation(model.config, loss, {}), loss, torch.Generator().manual_seed(0))
    parts["total"].backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    alone = torch.cat([model(collate([example])).hidden_RH for example in examples])
    torch.testing.assert_close(model(batch).hidden_RH, alone, **TIGHT)


def test_a_pooled_prompt_is_answered_alone_as_in_a_batch(rng):
    model, vocabulary = student(**PLAIN), micro_vocabulary()
    examples = [asking(rng, answer=None), asking(rng, answer=None, shift=9)]
    together = generate(model, vocabulary, examples, 5)
    apart = [generate(model, vocabulary, [example], 5)[0] for example in examples]
    assert [one.token_ids for one in together] == [one.token_ids for one in apart]


def test_pooling_follows_autocast_and_the_dtype_of_the_parameters(rng):
    model, batch = student(**PLAIN), collate([asking(rng, answer="A square.")])
    expected = embedded(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounding = float(expected.abs().max()) * 2**-7
        torch.testing.assert_close(embedded(model, batch), expected, rtol=0, atol=rounding)
    assert embedded(model.to(torch.bfloat16), batch).dtype == torch.bfloat16
