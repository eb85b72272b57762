"""What is seen and what is said go through weights of their own, and meet in attention: whatever is done to make it fast."""

import pytest
import torch
from torch import Tensor

from student.config import LossConfig, StudentConfig
from student.eve.decoder import EveBlock, EveDecoder
from student.layers import heads, rotary, rotate
from student.layout import NOT_A_PATCH
from student.losses import Distillation, losses
from student.model import PixelSail
from student.sequence import Batch, collate
from student.sight import Whole
from tests.student.eve.micro import eve_config, eve_mixed, eve_student
from tests.student.micro import micro_vocabulary, pointed, spoken

TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def blended(x_RH: Tensor, visual_R1: Tensor, text, visual) -> Tensor:
    """As EVEv2 computes it: every token by both, of which one counts."""
    return text(x_RH) * (1 - visual_R1) + visual(x_RH) * visual_R1


def block_as_published(block: EveBlock, config: StudentConfig, x_RH: Tensor, visual_R1: Tensor, batch: Batch) -> Tensor:
    turn, attention = rotary(batch.positions_3R, config.head_dim, config.rope_theta), block.self_attn
    normed = blended(x_RH, visual_R1, block.input_layernorm, block.moe_input_layernorm)
    pairs = ((getattr(attention, f"{part}_proj"), getattr(attention, f"moe_{part}_proj")) for part in "qkv")
    query, key, value = (heads(blended(normed, visual_R1, *pair), config.head_dim) for pair in pairs)
    sight = Whole(batch.spans, x_RH.device)
    mixed = sight(0, rotate(query, turn), rotate(key, turn), value).transpose(0, 1).flatten(1)
    x_RH = x_RH + blended(mixed, visual_R1, attention.o_proj, attention.moe_o_proj)
    normed = blended(x_RH, visual_R1, block.post_attention_layernorm, block.moe_post_attention_layernorm)
    return x_RH + blended(normed, visual_R1, block.mlp, block.moe_mlp)


@torch.no_grad()
def test_separate_is_what_blending_gives(rng):
    student, batch = eve_student(), collate(eve_mixed(rng))
    decoder: EveDecoder = student.single_transformer.model
    for norm in (module for name, module in decoder.named_modules() if name.endswith("norm")):
        norm.weight.uniform_(0.5, 1.5)
    visual_R = batch.patch_index_R != NOT_A_PATCH
    x_RH = decoder.embed_tokens(batch.tokens_R)
    x_RH[visual_R] = decoder._seen(batch, visual_R.nonzero()[:, 0], student.prompt_ids)
    for block in decoder.layers:
        x_RH = block_as_published(block, student.config, x_RH, visual_R[:, None].float(), batch)
    torch.testing.assert_close(student.states(batch), decoder.norm(x_RH), **TIGHT)


def test_patches_are_read_as_by_convolutions_over_the_picture(rng):
    tower = eve_student(patch=32, eve={"channels": 6, "side": 80}, mask_stride=2).single_transformer.model.vision_tower
    with torch.no_grad():
        for bias in (tower.patch_embedding[0].bias, tower.patch_embedding[2].bias):
            bias.normal_()
    pixels = torch.randn(3, 64, 96)
    patches = pixels.unflatten(1, (2, 32)).unflatten(3, (3, 32)).permute(1, 3, 0, 2, 4).reshape(6, -1)
    expected_Hhw = tower.patch_embedding(pixels[None])[0]
    torch.testing.assert_close(tower(patches), expected_Hhw.flatten(1).T, **TIGHT)


def test_a_batch_gives_what_its_samples_give_alone(rng):
    student, examples = eve_student(), eve_mixed(rng)
    together = student(collate(examples))
    for i, (example, hidden_LH) in enumerate(
        zip(examples, together.hidden_RH.split([len(example.tokens_L) for example in examples]), strict=True)
    ):
        alone = student(collate([example]))
        torch.testing.assert_close(hidden_LH, alone.hidden_RH, **TIGHT)
        assert (together.patches[i] is None) == (example.grid is None)
        if example.grid:
            assert together.patches[i].shape[:2] == example.grid
            torch.testing.assert_close(together.patches[i], alone.patches[0], **TIGHT)
        if len(example.masks_nHW):
            torch.testing.assert_close(together.mask_logits[i], alone.mask_logits[0], **TIGHT)


def test_nothing_sees_what_comes_after_it(rng):
    student, (example, *_) = eve_student(), eve_mixed(rng)
    batch = collate([example])
    before = student.states(batch)
    last = int((batch.patch_index_R >= 0).nonzero()[-1])
    batch.patches_NP[-1] += 1.0
    after = student.states(batch)
    assert torch.equal(before[:last], after[:last])
    assert not torch.isclose(before[last:], after[last:]).all(dim=1).any()


def test_a_marked_region_carries_the_embedding_of_its_word(rng):
    """And class and split tokens carry nothing but themselves."""
    student, batch = eve_student(), collate(eve_mixed(rng))
    decoder: EveDecoder = student.single_transformer.model
    visual_V = (batch.patch_index_R != NOT_A_PATCH).nonzero()[:, 0]
    found_VH, read_NH = decoder._seen(batch, visual_V, student.prompt_ids), decoder.vision_tower(batch.patches_NP)
    tower, words = decoder.vision_tower, decoder.embed_tokens.weight
    around, marked = {-2: tower.class_embedding, -3: tower.split_embedding}, 0
    for place, found_H in zip(visual_V.tolist(), found_VH, strict=True):
        index, prompt = int(batch.patch_index_R[place]), int(batch.prompt_index_R[place])
        expected = read_NH[index] if index >= 0 else around[index]
        if prompt >= 0:
            marked, expected = marked + 1, expected + words[micro_vocabulary().prompt_ids[prompt]]
        torch.testing.assert_close(found_H, expected, **TIGHT)
    assert marked > 4


@pytest.mark.parametrize("which", [slice(None), slice(1, 2)], ids=["mixed", "text alone"])
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(rng, which):
    student, batch = eve_student(), collate(eve_mixed(rng)[which])
    loss = LossConfig(points=16)
    parts = losses(student(batch), batch, Distillation(student.config, loss, {}), loss, torch.Generator().manual_seed(0))
    parts["total"].backward()
    assert [
        name for name, weight in student.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()
    ] == []
    still = [name for name, weight in student.named_parameters() if not weight.grad.any()]
    seen = "moe_", "vision_tower", "projector", "upsample_blocks"
    # Attention does not change where all keys move alike.
    assert all("k_proj.bias" in name or (which != slice(None) and any(part in name for part in seen)) for name in still)


def test_bfloat16_runs_forward_and_backward(rng):
    student, batch = eve_student(), collate(eve_mixed(rng))
    with torch.autocast("cpu", torch.bfloat16):
        output = student(batch)
    output.mask_logits[0].float().square().mean().backward()
    assert student.single_transformer.model.vision_tower.patch_embedding[0].weight.grad.isfinite().all()
    assert student.to(torch.bfloat16)(batch).hidden_RH.dtype == torch.bfloat16


def test_near_tokens_attract_each_other_from_the_beginning():
    attention = eve_student(recency=2.0).single_transformer.model.layers[0].self_attn
    assert torch.equal(attention.k_proj.bias, attention.moe_k_proj.bias)
    assert torch.equal(attention.q_proj.bias, attention.moe_q_proj.bias)
    assert attention.k_proj.bias.any()


def test_names_and_shapes_of_the_full_student():
    config = StudentConfig(
        layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, ffn=18944, patch=32, mask_dim=256, mask_stride=2, eve={}
    )
    vocabulary = micro_vocabulary(15)
    with torch.device("meta"):
        student = PixelSail(config, vocabulary, None)
    found = {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}
    c, h, d, s, k, f, v = 1024, 3584, 1024, 256, 512, 18944, len(vocabulary)
    model = "single_transformer.model"
    wanted = {
        f"{model}.vision_tower.patch_embedding.0.weight": (c, 3, 16, 16),
        f"{model}.vision_tower.patch_embedding.0.bias": (c,),
        f"{model}.vision_tower.patch_embedding.2.weight": (h, c, 2, 2),
        f"{model}.vision_tower.patch_embedding.2.bias": (h,),
        f"{model}.vision_tower.class_embedding": (h,),
        f"{model}.vision_tower.split_embedding": (h,),
        f"{model}.embed_tokens.weight": (v, h),
        f"{model}.vp_embed.weight": (h, h),
        f"{model}.norm.weight": (h,),
        "single_transformer.lm_head.weight": (v, h),
    }
    for layer in range(28):
        for kind in ("", "moe_"):
            at = f"{model}.layers.{layer}"
            for part, rows in (("q", h), ("k", k), ("v", k)):
                wanted[f"{at}.self_attn.{kind}{part}_proj.weight"] = (rows, h)
                wanted[f"{at}.self_attn.{kind}{part}_proj.bias"] = (rows,)
            wanted[f"{at}.self_attn.{kind}o_proj.weight"] = (h, h)
            wanted |= {f"{at}.{kind}mlp.{part}_proj.weight": (f, h) for part in ("gate", "up")}
            wanted[f"{at}.{kind}mlp.down_proj.weight"] = (h, f)
            wanted |= {f"{at}.{kind}{norm}_layernorm.weight": (h,) for norm in ("input", "post_attention")}
    assert {name: shape for name, shape in found.items() if name.startswith("single_transformer.")} == wanted
    head = {name: tensor.numel() for name, tensor in student.state_dict().items() if name not in wanted}
    assert {name.split(".")[1] for name in head if name.startswith("upsample_blocks.")} == {"0", "1", "2", "3"}
    assert found["image_feature_pre_projector.2.weight"] == (d, h)
    assert found["image_feature_projector.2.weight"] == (s, d)
    assert round(sum(head.values()) / 1e6, 1) == 42.8


def test_masks_have_their_stride(rng):
    config = eve_config(patch=32, eve={"channels": 6, "side": 64}, mask_stride=2)
    student = PixelSail(config, micro_vocabulary(), torch.Generator().manual_seed(0))
    output = student(collate([pointed(rng, 32, 48, 1, config=config), spoken(config=config)]))
    h, w = output.patches[0].shape[:2]
    assert output.mask_logits[0].shape == (1, 16 * h, 16 * w)
