import itertools
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from schemas.errors import ConfigError, MissingLibrary
from teachers.build import build_segmenter, build_teacher
from teachers.config import Mask2FormerConfig
from teachers.mask2former import network as networks
from teachers.mask2former import segmenter as segmenters
from teachers.mask2former.config import ResNet

ROOT = Path(__file__).parents[2]
CONFIG = Mask2FormerConfig()
RESNET = Mask2FormerConfig(sizes=CONFIG.sizes.model_copy(update={"backbone": ResNet(width=8, blocks=(1, 2, 1, 1))}))
INSTANCES = Mask2FormerConfig(task="instance")
GRID = (32, 32)


@pytest.fixture(scope="module", params=[CONFIG, RESNET], ids=["swin", "resnet"])
def config(request):
    return request.param


@pytest.fixture(scope="module")
def teacher(config):
    return build_teacher(config)


@pytest.fixture(scope="module")
def network(config):
    return networks.load(config)


def test_features_are_those_of_the_full_model(config, teacher, network, pictures):
    grids = [GRID, None, (7, 9)]
    for image, grid, feature in zip(pictures, grids, teacher.features(pictures, grids), strict=True):
        full = network.model(networks.preprocess(image, config)).pixel_decoder_last_hidden_state
        if grid is not None:
            full = torch.nn.functional.interpolate(full, size=grid, mode="bilinear", align_corners=False)
        assert feature.dtype == np.float32
        np.testing.assert_array_equal(feature, full[0].numpy())


def test_features_need_no_query_decoder(config, network):
    features, whole = networks.MaskFeatures(network), set(network.state_dict())
    assert {name.replace("pixel_level.", "model.pixel_level_module.") for name in features.state_dict()} < whole
    assert not [name for name in features.state_dict() if "transformer_module" in name or "class_predictor" in name]


def test_the_mask_features_have_stride_four(config, network, pictures):
    pixels = networks.preprocess(pictures[1], config)
    assert pixels.shape == (1, 3, 128, 224)
    assert network.model.pixel_level_module(pixels).decoder_last_hidden_state.shape == (1, 32, 32, 56)


def test_the_network_answers_as_the_class_of_transformers(config, network, pictures):
    """Its forward, on our parts: the class itself cannot be made without scipy, which only its loss needs."""
    pixels = networks.preprocess(pictures[0], config)
    parts = SimpleNamespace(
        config=network.config,
        model=network.model,
        class_predictor=network.class_predictor,
        get_auxiliary_logits=lambda classes, masks: None,
    )
    reference = Mask2FormerForUniversalSegmentation.forward(parts, pixels)
    classes, masks = network(pixels)
    torch.testing.assert_close(classes, reference.class_queries_logits)
    torch.testing.assert_close(masks, reference.masks_queries_logits)


def test_an_image_alone_has_the_stored_bits_it_has_in_a_batch(teacher, pictures):
    together = teacher.features(pictures, [GRID] * 3)
    alone = [teacher.features([image], [GRID])[0] for image in reversed(pictures)][::-1]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(torch.tensor(one).bfloat16(), torch.tensor(other).bfloat16())


def test_random_features_depend_on_the_picture_and_the_place(pictures):
    features_NCHW = np.stack(build_teacher(CONFIG).features(pictures, [GRID] * 3))
    assert 0.5 < features_NCHW.std() < 2
    assert features_NCHW.std(axis=(0, 2, 3)).min() > 0.3
    assert abs(features_NCHW.mean(axis=(0, 2, 3))).mean() < features_NCHW.std()
    assert features_NCHW.std(axis=0).mean() > 0.3


def test_half_precision_stays_near(pictures):
    exact, half = (build_teacher(CONFIG.model_copy(update={"dtype": dtype})) for dtype in ("float32", "bfloat16"))
    one, other = exact.features(pictures[:1], [None])[0], half.features(pictures[:1], [None])[0]
    assert 0 < np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one)


def test_input_sizes_are_those_of_the_reference(rng):
    published = Mask2FormerConfig(weights="facebook/mask2former-swin-large-coco-panoptic")
    known = {(480, 640): (800, 1088), (427, 640): (800, 1216), (360, 640): (768, 1344), (640, 640): (800, 800)}
    assert {size: networks.input_size(*size, published) for size in known} == known
    sizes = [*rng.integers(20, 3000, (300, 2)).tolist(), [800, 1100], [10, 1390], [1333, 1333], [50, 3000]]
    for height, width in sizes:
        rounded = tuple(-(-side // 32) * 32 for side in get_size_with_aspect_ratio((height, width), 800, 1333))
        assert networks.input_size(height, width, published) == rounded, (height, width)


def test_inputs_are_those_of_the_reference(rng):
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": CONFIG.shortest_edge, "longest_edge": CONFIG.longest_edge})
    for height, width in rng.integers(8, 400, (200, 2)).tolist():
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(networks.preprocess(image, CONFIG), expected, atol=1e-6, rtol=0)


def test_a_sliver_of_a_picture_still_has_an_input():
    assert networks.input_size(1, 4000, CONFIG)[0] == 32


def test_segments_are_disjoint_masks_of_the_picture(config, pictures):
    segmenter = build_segmenter(config)
    found = [segmenter.segments(image) for image in pictures]
    assert sum(len(regions) for regions in found) > len(pictures)
    for image, regions in zip(pictures, found, strict=True):
        assert np.sum([one.mask_HW for one in regions], axis=0).max() <= 1
        assert_proposals(regions, image)


def test_instances_are_masks_of_the_picture(pictures):
    for image in pictures:
        regions = build_segmenter(INSTANCES).segments(image)
        assert_proposals(regions, image)
        assert len(regions) > 5 and all(one.is_thing for one in regions)


def assert_proposals(regions, image):
    assert all(one.mask_HW.shape == image.shape[:2] and one.mask_HW.dtype == bool for one in regions)
    assert all(one.mask_HW.any() for one in regions)
    assert all(one.category.startswith("LABEL_") for one in regions)
    assert all(one.is_thing == (int(one.category.removeprefix("LABEL_")) < CONFIG.things) for one in regions)
    scores = [one.score for one in regions]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_nothing_passes_an_impossible_score(pictures, task):
    assert build_segmenter(Mask2FormerConfig(task=task, min_score=1.1)).segments(pictures[0]) == []


def test_as_many_instances_as_asked_for(pictures):
    def best(count):
        return build_segmenter(INSTANCES.model_copy(update={"max_instances": count, "things": 8})).segments(pictures[0])

    assert len(best(3)) == 3 < len(best(1000)) <= CONFIG.sizes.queries * CONFIG.sizes.labels


def original_panoptic(mask_cls: Tensor, mask_pred: Tensor, config: Mask2FormerConfig) -> list[tuple[int, np.ndarray]]:
    """The authors' inference, query by query and id by id: (label, mask) of each id of its panoptic map."""
    scores, labels = mask_cls.softmax(-1).max(-1)
    kept = [q for q in range(len(labels)) if labels[q] != mask_cls.shape[-1] - 1 and scores[q] > config.min_score]
    if not kept:
        return []
    owner = (scores[kept].view(-1, 1, 1) * mask_pred[kept].sigmoid()).argmax(0).numpy()
    ids, infos, stuff = np.zeros(mask_pred.shape[-2:], dtype=int), [], {}
    for k, query in enumerate(kept):
        own, label = mask_pred[query].sigmoid().numpy() >= 0.5, int(labels[query])
        area, original_area, mask = (owner == k).sum(), own.sum(), (owner == k) & own
        if not (area > 0 and original_area > 0 and mask.sum() > 0) or area / original_area < config.min_overlap:
            continue
        if label >= config.things:
            if label in stuff:
                ids[mask] = stuff[label]
                continue
            stuff[label] = len(infos) + 1
        infos.append(label)
        ids[mask] = len(infos)
    return [(label, ids == number + 1) for number, label in enumerate(infos)]


def original_instances(mask_cls: Tensor, mask_pred: Tensor, config: Mask2FormerConfig) -> list[tuple[int, float, np.ndarray]]:
    """The authors' inference, pair by pair: (label, score, mask); their panoptic networks keep things only."""
    scores = mask_cls.softmax(-1)[:, :-1]
    pairs = sorted(itertools.product(*map(range, scores.shape)), key=lambda pair: -scores[pair])[: config.max_instances]
    found = []
    for query, label in pairs:
        mask = (mask_pred[query] > 0).float()
        quality = (mask_pred[query].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        if label < config.things:
            found.append((label, float(scores[query, label] * quality), mask.bool().numpy()))
    return found


def blobs(seed: int, queries: int = 12, labels: int = 8, size: tuple[int, int] = (40, 56)) -> tuple[Tensor, Tensor]:
    """Class logits and smooth mask logits, some of them sure and some not."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, queries, 5, 6, generator=draw) * 4
    masks = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
    return torch.randn(queries, labels + 1, generator=draw) * 3, masks


@pytest.mark.parametrize("seed", range(12))
def test_panoptic_regions_are_those_of_the_original(seed):
    """Masks of this kind overlap a lot: at 0.8 nearly all would be dropped."""
    config = Mask2FormerConfig(min_score=0.3, min_overlap=0.4)
    classes, masks = blobs(seed)
    found = segmenters.panoptic(classes.softmax(-1), lambda queries: masks[queries], config)
    expected = original_panoptic(classes, masks, config)
    assert [label for label, _, _ in found] == [label for label, _ in expected] and len(found) > 0
    for (_, _, mask), (_, reference) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), reference)


@pytest.mark.parametrize("seed", range(12))
def test_instances_are_those_of_the_original(seed):
    config = Mask2FormerConfig(task="instance", max_instances=15)
    classes, masks = blobs(seed)
    found = segmenters.instances(classes.softmax(-1), lambda queries: masks[queries], config)
    expected = [region for region in original_instances(classes, masks, config) if region[2].any()]
    assert [label for label, _, _ in found] == [label for label, _, _ in expected] and len(found) > 3
    for (_, score, mask), (_, reference_score, reference) in zip(found, expected, strict=True):
        assert score == pytest.approx(reference_score, rel=1e-6)
        np.testing.assert_array_equal(mask.numpy(), reference)


def test_a_whole_picture_is_cut_as_the_original_cuts_it(pictures):
    """Masks go by way of the input's size to that of the picture."""
    image, network = pictures[1], networks.load(CONFIG)
    prepared = networks.preprocess(image, CONFIG)
    classes, masks = network(prepared)
    enlarged = torch.nn.functional.interpolate(masks, size=prepared.shape[-2:], mode="bilinear", align_corners=False)
    enlarged = torch.nn.functional.interpolate(enlarged, size=image.shape[:2], mode="bilinear", align_corners=False)[0]
    found = build_segmenter(CONFIG).segments(image)
    expected = {(f"LABEL_{label}", mask.tobytes()) for label, mask in original_panoptic(classes[0], enlarged, CONFIG)}
    assert {(one.category, one.mask_HW.tobytes()) for one in found} == expected
    found = build_segmenter(INSTANCES).segments(image)
    expected = original_instances(classes[0], enlarged, INSTANCES)
    assert sorted(one.score for one in found) == pytest.approx(sorted(score for _, score, mask in expected if mask.any()))


def tiles(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A picture of 384 x 384 without gaps: four sure things, one of them over most of a fifth, and stuff in two parts."""
    logits = rng.uniform(-6, -2, (7, 384, 384)).astype(np.float32)
    places = [np.s_[:200, :100], np.s_[:200, 100:250], np.s_[:200, 250:], np.s_[200:, :180], np.s_[150:200, 270:300]]
    for query, place in enumerate([*places, np.s_[200:, 180:300], np.s_[200:, 300:]]):
        logits[(query, *place)] = rng.uniform(1, 3, logits[(query, *place)].shape)
    logits[(0, *np.s_[:200, 100:110])] = 0.5
    logits[(2, *np.s_[150:200, 270:295])] = 5
    classes = torch.zeros(7, 9)
    classes[torch.arange(7), torch.tensor([0, 3, 3, 4, 1, 6, 6])] = 60
    return classes, torch.tensor(logits)


def test_panoptic_regions_are_those_of_the_library_where_it_follows_the_original(rng):
    """Sure scores, no gap between masks, its own 384 x 384, and stuff at the end: it may give one number twice otherwise."""
    classes, masks = tiles(rng)
    answer = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    fused = set(range(CONFIG.things, 8))
    reference = Mask2FormerImageProcessorPil().post_process_panoptic_segmentation(answer, 0.8, 0.5, 0.8, fused)[0]
    expected = {one["id"]: (one["label_id"], one["score"]) for one in reference["segments_info"]}
    config = Mask2FormerConfig(min_score=0.8, min_overlap=0.8)
    found = segmenters.panoptic(classes.softmax(-1), lambda queries: masks[queries], config)
    assert [(label, score) for label, score, _ in found] == list(expected.values())
    assert [label for label, _, _ in found] == [0, 3, 3, 4, 6], "the hidden thing is dropped and stuff is one"
    for number, (_, _, mask) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(mask.numpy(), (reference["segmentation"] == number).numpy())


@pytest.mark.parametrize("seed", range(4))
def test_instances_are_those_of_the_library_at_its_own_size(seed):
    classes, masks = blobs(seed, queries=15, size=(384, 384))
    answer = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    processor = Mask2FormerImageProcessorPil()
    reference = processor.post_process_instance_segmentation(answer, threshold=0.3, return_binary_maps=True)[0]
    config = Mask2FormerConfig(task="instance", things=8, min_score=0.3, max_instances=15)
    found = segmenters.instances(classes.softmax(-1), lambda queries: masks[queries], config)
    expected = zip(reference["segments_info"], reference["segmentation"].bool().numpy(), strict=True)
    expected = sorted(((one["label_id"], one["score"], mask.tobytes()) for one, mask in expected), key=lambda one: -one[1])
    ours = sorted(((label, round(score, 6), mask.numpy().tobytes()) for label, score, mask in found), key=lambda one: -one[1])
    assert [(label, mask) for label, _, mask in ours] == [(label, mask) for label, _, mask in expected] and len(ours) > 2
    assert [score for _, score, _ in ours] == pytest.approx([score for _, score, _ in expected], abs=2e-6)


PIXELS = Mask2FormerConfig(things=5, min_overlap=0.8)


def regions_of(masks: list[list[float]], scores: list[float], labels: list[int]) -> list[tuple[int, float, list[int]]]:
    """`panoptic` on pictures of one row."""
    scores_QL = torch.zeros(len(labels), 9)
    scores_QL[torch.arange(len(labels)), torch.tensor(labels, dtype=torch.int64)] = torch.tensor(scores)
    logits = torch.tensor(masks)[:, None].logit() if masks else torch.zeros(0, 1, 4)
    found = segmenters.panoptic(scores_QL, lambda queries: logits[queries], PIXELS)
    return [(label, round(score, 4), mask[0].int().tolist()) for label, score, mask in found]


def test_a_pixel_goes_to_the_largest_product_of_score_and_mask():
    masks = [[0.9, 0.9, 0.9, 0.0], [0.0, 0.0, 0.6, 0.9]]
    assert regions_of(masks, [0.5, 1.0], [1, 2]) == [(2, 1.0, [0, 0, 1, 1])]
    assert regions_of(masks, [1.0, 0.9], [1, 2]) == [(1, 1.0, [1, 1, 1, 0])]


def test_a_pixel_of_a_weak_mask_belongs_to_nobody():
    assert regions_of([[0.9, 0.9, 0.3, 0.4]], [1.0], [1]) == [(1, 1.0, [1, 1, 0, 0])]


def test_stuff_is_merged_and_things_are_not():
    masks = [[0.9, 0.9, 0.0, 0.0], [0.0, 0.0, 0.9, 0.9]]
    assert regions_of(masks, [0.8, 0.9], [7, 7]) == [(7, 0.9, [1, 1, 1, 1])]
    assert regions_of(masks, [0.8, 0.9], [3, 3]) == [(3, 0.8, [1, 1, 0, 0]), (3, 0.9, [0, 0, 1, 1])]
    assert regions_of(masks, [0.8, 0.9], [8, 3]) == [(3, 0.9, [0, 0, 1, 1])], "the last label says that there is nothing"
    assert regions_of([], [], []) == []


ORIGINAL = Mask2FormerConfig(backend="detectron2")


def test_the_original_network_without_its_libraries_says_how_to_install_them():
    try:
        import detectron2  # noqa: F401
    except ImportError:
        with pytest.raises(
            MissingLibrary, match=r"backend: the detectron2 backend needs .*docs/features.md, '(.*)':"
        ) as raised:
            build_teacher(ORIGINAL)
        told = (ROOT / "docs" / "features.md").read_text().split("\n## The original Mask2Former\n")[1].split("\n## ")[0]
        asked = re.search(r"pip install '[^']*\[(\w+)\]'", str(raised.value))
        assert asked and asked[0] in told
        assert asked[1] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(f"github.com/facebookresearch/{name}" in told for name in ("detectron2", "Mask2Former"))


def test_the_original_network_gives_no_segments():
    with pytest.raises(ConfigError, match="the detectron2 backend gives features only"):
        build_segmenter(ORIGINAL)
