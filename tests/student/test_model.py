import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from schemas.errors import ConfigError
from student.config import StudentConfig
from student.layers import rotary, rotate
from student.model import PixelSail, mask_logits
from student.prompts import prompt_vectors
from student.sequence import IGNORED, collate
from student.sight import KeyValues
from student.upsample import UpsampleBlock
from student.vocabulary import Vocabulary
from tests.student.micro import TEXTS, extended, micro_config, micro_vocabulary, pointed, spoken

TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def student(generator, **over) -> PixelSail:
    return PixelSail(micro_config(**over), micro_vocabulary(), generator)


def mixed(rng):
    """Pictures of three sizes (two of them alike), with and without masks, and a sample without a picture."""
    return [pointed(rng, 32, 48, 2), spoken(), pointed(rng, 48, 32, 0), pointed(rng, 33, 64, 1), pointed(rng, 32, 48, 1)]


def test_rotary_axes_channel_by_channel(generator):
    positions = torch.randint(0, 40, (3, 5), generator=generator)
    x = torch.randn(3, 5, 16, generator=generator)
    turned = rotate(x, rotary(positions, 16, 100.0))
    for head, place, channel in np.ndindex(3, 5, 16):
        pair, frequency = (channel + 8) % 16, channel % 8
        axis = 1 if channel % 8 < 4 else 2
        angle = float(positions[axis, place]) * 100.0 ** (-2 * frequency / 16)
        sign = -1 if channel < 8 else 1
        values = x[head, place]
        expected = values[channel] * math.cos(angle) + sign * values[pair] * math.sin(angle)
        assert float(turned[head, place, channel]) == pytest.approx(float(expected), abs=1e-5)


def test_patches_carry_their_pixels_and_their_prompt(rng, generator):
    model = student(generator)
    batch = collate(mixed(rng))
    decoder = model.single_transformer.model
    prompts = prompt_vectors(batch.prompt_index_R, decoder.embed_tokens(model.prompt_ids), decoder.vp_embed.weight)
    pixels = decoder.pixels(batch)
    for i in range(len(batch.tokens_R)):
        patch, prompt = int(batch.patch_index_R[i]), int(batch.prompt_index_R[i])
        shown = decoder.vis_embed(batch.patches_NP[patch]) if patch >= 0 else torch.zeros(32)
        marked = decoder.vp_embed(decoder.embed_tokens.weight[model.prompt_ids[prompt]]) if prompt >= 0 else torch.zeros(32)
        torch.testing.assert_close(pixels[i], shown, **TIGHT)
        torch.testing.assert_close(prompts[i], marked, **TIGHT)
    assert {0, 1} <= set(batch.prompt_index_R.unique().tolist())


def test_prompt_vectors_keep_the_dtype_of_the_parameters():
    index = torch.tensor([-1, -2, 0])
    found = prompt_vectors(index, torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(4, 4, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[0] * 4, [0] * 4, [4] * 4]


def test_the_release_projects_prompts_in_float32_where_products_are_rounded(rng, generator):
    batch, found = collate(mixed(rng)), {}
    for compat in ("correct", "paper"):
        model = student(generator.manual_seed(0), compat=compat)
        decoder = model.single_transformer.model
        with torch.autocast("cpu", torch.bfloat16):
            found[compat] = decoder.vp_embed.vectors(batch, decoder.pixels(batch), model.prompt_ids, decoder.embed_tokens)
    exact = prompt_vectors(batch.prompt_index_R, decoder.embed_tokens(model.prompt_ids), decoder.vp_embed.weight)
    assert torch.equal(found["paper"], exact)
    assert torch.equal(found["correct"].float(), found["correct"].bfloat16().float())
    assert not torch.equal(found["correct"].float(), exact)


def test_a_mask_is_the_inner_product_at_every_place(generator):
    queries, features = torch.randn(2, 5, generator=generator), torch.randn(5, 3, 4, generator=generator)
    found = mask_logits(queries, features)
    for n, y, x in np.ndindex(2, 3, 4):
        expected = sum(float(queries[n, c]) * float(features[c, y, x]) for c in range(5))
        assert float(found[n, y, x]) == pytest.approx(expected, abs=1e-5)


def test_an_upsample_block_pixel_by_pixel(generator):
    block = UpsampleBlock(3)
    up, separable, norm = block[0], block[2], block[3].ln
    x = torch.randn(1, 3, 2, 3, generator=generator)
    wide = torch.stack(
        [torch.stack([up.weight[:, :, y % 2, c % 2].T @ x[0, :, y // 2, c // 2] + up.bias for c in range(6)]) for y in range(4)]
    )
    padded = F.pad(F.gelu(wide), (0, 0, 1, 1, 1, 1))
    found = block(x)
    for y, c in np.ndindex(4, 6):
        window = padded[y : y + 3, c : c + 3]
        deep = (window * separable.depthwise.weight[:, 0].permute(1, 2, 0)).sum((0, 1)) + separable.depthwise.bias
        mixed_channels = separable.pointwise.weight[:, :, 0, 0] @ deep + separable.pointwise.bias
        centred = mixed_channels - mixed_channels.mean()
        expected = centred / (centred.square().mean() + 1e-6).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(found[0, :, y, c], expected, **TIGHT)


def test_text_alone_gives_what_qwen2_gives(generator):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = student(generator, rope_theta=500.0)
    for parameter in model.single_transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    reference = Qwen2ForCausalLM(
        Qwen2Config(
            **sizes,
            num_key_value_heads=2,
            vocab_size=len(micro_vocabulary()),
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            tie_word_embeddings=False,
        )
    ).eval()
    ours = {name.removeprefix("single_transformer."): value for name, value in model.state_dict().items()}
    missing, _ = reference.load_state_dict(ours, strict=False)
    assert missing == []
    with torch.no_grad():
        batch = collate([spoken()])
        (expected,) = reference(batch.tokens_R[None]).logits
        torch.testing.assert_close(model.logits(model.states(batch)), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_gives_what_its_samples_give_alone(rng, generator):
    model = student(generator)
    examples = mixed(rng)
    batch = collate(examples)
    together, spans = model(batch), batch.spans
    logits = []
    for row, example in enumerate(examples):
        alone = model(collate([example]))
        torch.testing.assert_close(together.hidden_RH[spans[row].rows], alone.hidden_RH, **TIGHT)
        for name in ("patches", "mask_features", "mask_logits"):
            found, expected = getattr(together, name)[row], getattr(alone, name)[0]
            assert (found is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        logits.append(alone.logits_SV)
    torch.testing.assert_close(together.logits_SV, torch.cat(logits), **TIGHT)
    assert together.hidden_RH.isfinite().all()


def test_outputs_are_read_at_their_tokens(rng, generator):
    model = student(generator)
    example = pointed(rng, 32, 48, 2)
    batch = collate([example])
    output = model(batch)
    hidden = output.hidden_RH
    torch.testing.assert_close(output.patches[0], hidden[1:7].unflatten(0, (2, 3)), rtol=0, atol=0)
    supervised = [i for i, label in enumerate(example.labels_L) if label != IGNORED]
    torch.testing.assert_close(output.logits_SV, model.logits(hidden[[i - 1 for i in supervised]]), **TIGHT)
    segs = [i for i, label in enumerate(example.labels_L) if label == micro_vocabulary().seg]
    features = model.mask_features([output.patches[0]])[0]
    assert features.shape == (12, 8, 12)
    torch.testing.assert_close(output.mask_logits[0], mask_logits(model.queries(hidden[segs]), features), **TIGHT)


def test_features_can_be_made_for_samples_with_masks_alone(rng, generator):
    output = student(generator)(collate(mixed(rng)), every_picture=False)
    assert [features is not None for features in output.mask_features] == [True, False, False, True, True]


def test_tokens_one_by_one_give_what_the_whole_gives(rng, generator):
    """Two samples side by side, of other lengths, each going on from its own prompt."""
    model = student(generator)
    asked = [pointed(rng, *size, 0, turns=[("Where?", None)]) for size in ((32, 48), (16, 16))]
    more = [micro_vocabulary().encode("beside it."), micro_vocabulary().encode("It is [SEG]")]
    whole = collate([extended(example, tokens) for example, tokens in zip(asked, more, strict=True)])
    past, batch = KeyValues(), collate(asked)
    with torch.no_grad():
        expected = model.states(whole)
        begun = model.states(batch, past)
        for span, full in zip(batch.spans, whole.spans, strict=True):
            torch.testing.assert_close(begun[span.rows], expected[full.rows][: span.length], **TIGHT)
        position = torch.tensor([int(example.positions_3L.max()) for example in asked])
        for step, pair in enumerate(zip(*more, strict=False)):
            found = model.next_states(torch.tensor(pair), position + 1 + step, past)
            places = [full.start + span.length + step for span, full in zip(batch.spans, whole.spans, strict=True)]
            torch.testing.assert_close(found, expected[places], **TIGHT)


def test_the_picture_first_and_the_text_after_it_give_what_the_whole_gives(rng, generator):
    """The two phases of the reference (2.6): the image block sees all of itself, then one token after the other."""
    model, example = student(generator), pointed(rng, 32, 48, 1)
    whole = collate([example])
    block, past = whole.spans[0].block, KeyValues()
    names = ("tokens_L", "labels_L", "patch_index_L", "prompt_index_L", "positions_3L")
    picture = replace(example, **{name: getattr(example, name)[..., :block] for name in names})
    with torch.no_grad():
        expected = model.states(whole)
        torch.testing.assert_close(model.states(collate([picture]), past), expected[:block], **TIGHT)
        for i in range(block, len(expected)):
            found = model.next_states(whole.tokens_R[i : i + 1], whole.positions_3R[0, i : i + 1], past)
            torch.testing.assert_close(found, expected[i : i + 1], **TIGHT)


def test_tensor_names_and_shapes_are_the_checkpoints():
    config = StudentConfig(layers=1, hidden=1088, heads=17, kv_heads=1, head_dim=64, ffn=96, mask_dim=256, mask_stride=2)
    vocabulary = Vocabulary.train(TEXTS, 320, 15)
    with torch.device("meta"):
        found = {name: tuple(tensor.shape) for name, tensor in PixelSail(config, vocabulary, None).state_dict().items()}
    h, d, s, k, f, v = 1088, 1024, 256, 64, 96, len(vocabulary)
    layer, linear = "single_transformer.model.layers.0", {}
    for name, shape in {
        f"{layer}.self_attn.q_proj": (h, h),
        f"{layer}.self_attn.k_proj": (k, h),
        f"{layer}.self_attn.v_proj": (k, h),
        "image_feature_pre_projector.0": (h, h),
        "image_feature_pre_projector.2": (d, h),
        "seg_token_projector.0": (d, h),
        "seg_token_projector.2": (s, d),
        "image_feature_projector.0": (d, d),
        "image_feature_projector.2": (s, d),
        **{f"upsample_blocks.{b}.0": (d, d, 2, 2) for b in range(3)},
        **{f"upsample_blocks.{b}.2.depthwise": (d, 1, 3, 3) for b in range(3)},
        **{f"upsample_blocks.{b}.2.pointwise": (d, d, 1, 1) for b in range(3)},
        **{f"upsample_blocks.{b}.3.ln": (d,) for b in range(3)},
    }.items():
        linear |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert found == linear | {
        "single_transformer.model.embed_tokens.weight": (v, h),
        "single_transformer.model.vis_embed.weight": (h, 768),
        "single_transformer.model.vp_embed.weight": (h, h),
        "single_transformer.model.norm.weight": (h,),
        "single_transformer.lm_head.weight": (v, h),
        f"{layer}.self_attn.o_proj.weight": (h, h),
        f"{layer}.mlp.gate_proj.weight": (f, h),
        f"{layer}.mlp.up_proj.weight": (f, h),
        f"{layer}.mlp.down_proj.weight": (h, f),
        f"{layer}.input_layernorm.weight": (h,),
        f"{layer}.post_attention_layernorm.weight": (h,),
    }


def test_the_head_of_the_paper_has_the_reference_number_of_parameters():
    config = StudentConfig(layers=1, mask_stride=2)
    with torch.device("meta"):
        model = PixelSail(config, Vocabulary.train(TEXTS, 320, 15), None)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert round(count["upsample_blocks"] / 1e6, 1) == 12.1
    assert round((sum(count.values()) - count["single_transformer"]) / 1e6, 1) == 14.6


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = student(torch.Generator().manual_seed(7)).state_dict()
    torch.manual_seed(2)
    second = student(torch.Generator().manual_seed(7)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    blocks = [name for name in first if name.startswith("upsample_blocks.1.")]
    assert blocks
    assert all(torch.equal(first[name], first[name.replace("blocks.1", "blocks.0")]) for name in blocks)
    assert float(first["single_transformer.model.vp_embed.weight"].std()) == pytest.approx(0.2, rel=0.1)


def test_tied_embeddings_and_no_prompts_leave_their_tensors_out(rng):
    config = micro_config(tie_embeddings=True, prompts=0)
    vocabulary = micro_vocabulary(prompts=0)
    model = PixelSail(config, vocabulary, torch.Generator().manual_seed(0))
    names = model.state_dict()
    assert not [name for name in names if "lm_head" in name or "vp_embed" in name]
    batch = collate([spoken()])
    hidden = model.states(batch)
    torch.testing.assert_close(model.logits(hidden), hidden @ names["single_transformer.model.embed_tokens.weight"].T)


def test_bfloat16_runs_forward_and_backward(rng, generator):
    model = student(generator)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(collate(mixed(rng)))
    sum(logits.float().square().mean() for logits in output.mask_logits if logits is not None).backward()
    assert model.single_transformer.model.vis_embed.weight.grad.isfinite().all()


def test_a_vocabulary_with_other_prompts_is_refused():
    with pytest.raises(ConfigError, match="2 prompts for a student of 3"):
        PixelSail(micro_config(), micro_vocabulary(prompts=2), None)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"heads": 3}, "heads = 3 must be a multiple of kv_heads = 2"),
        ({"head_dim": 6}, "head_dim = 6 must be a multiple of 4"),
        ({"max_side": 40}, "max_side = 40 must be a multiple of patch = 16"),
        ({"mask_stride": 3}, "power of two"),
        ({"mask_stride": 32}, "power of two"),
        ({"mask_stride": 16, "patch": 48, "max_side": 96}, "power of two"),
        ({"layers": 0}, "layers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(over, message):
    with pytest.raises(ValidationError, match=message):
        micro_config(**over)


@pytest.mark.parametrize(("stride", "blocks"), [(16, 0), (8, 1), (4, 2), (2, 3)])
def test_the_mask_grid_has_the_stride_asked_for(rng, generator, stride, blocks):
    model = student(generator, mask_stride=stride)
    assert len(model.upsample_blocks) == blocks
    assert model(collate([pointed(rng, 32, 48, 1)])).mask_logits[0].shape == (1, 32 // stride, 48 // stride)
