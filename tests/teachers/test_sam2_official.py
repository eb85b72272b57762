"""Our SAM 2.1 against the official package on the same weights: not near, equal. Run by `make parity`."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.sample import sample_of
from tests.teachers import official

official.define_missing_operators()  # before transformers is imported

from teachers.base import Proposal  # noqa: E402
from teachers.build import build_segmenter, build_teacher  # noqa: E402
from teachers.config import Sam2Config  # noqa: E402
from teachers.sam2 import filters, network  # noqa: E402
from teachers.sam2.config import PRESETS, Sam2Sizes  # noqa: E402

pytestmark = [
    pytest.mark.official,
    pytest.mark.sample,
    pytest.mark.filterwarnings("ignore:register_new_resolver"),
    pytest.mark.filterwarnings("ignore:Implicit conversion from Version"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
]
# The official decoder has one size, and the heads double from stage to stage.
FIXED = {"heads": (1, 2, 4, 8), "decoder_heads": 8, "decoder_mlp": 2048}
MICRO = Sam2Config(channels=256, sizes=Sam2Sizes(**PRESETS["random"]["sizes"] | FIXED))
TINY = "sam2.1_hiera_t"
LAYERS = ("image_embed", "high_res_1", "high_res_0")


@pytest.fixture(scope="module")
def sam2() -> SimpleNamespace:
    return official.import_official()


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """A wide one, a tall one and a small one."""
    files = sorted(sample_of("coco").glob("images/*.jpg"))
    images = [np.array(Image.open(file).convert("RGB")) for file in files[:40]]
    tall = next(image for image in images if image.shape[0] > image.shape[1])
    return [images[0], tall, np.ascontiguousarray(images[1][100:160, 200:250])]


@pytest.fixture(scope="module")
def micro(sam2: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Sam2Config]:
    """A small official network, and the config of ours that reads its checkpoint."""
    return published(sam2, TINY, MICRO, tmp_path_factory.mktemp("micro") / "micro.pt")


def published(sam2: SimpleNamespace, yaml: str, config: Sam2Config, path: Path) -> tuple[Any, Sam2Config]:
    # As in `build_teacher`: sums over another number of threads are other sums.
    torch.set_num_threads(1)
    given = official.overrides(config) if config.is_random else [f"++model.image_size={config.image_size}"]
    model = sam2.build(f"configs/sam2.1/{yaml}.yaml", device="cpu", hydra_overrides_extra=given)
    official.publish(model, path)
    name = "somebody/sam2" if config.is_random else config.weights
    return model, config.model_copy(update={"weights": name, "folder": str(path)})


def predictor_of(predictor: Any, config: Sam2Config) -> Any:
    """The official predictor knows the grids of 1024 pixels only."""
    predictor._bb_feat_sizes = [(config.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return predictor


def levels(predictor: Any) -> dict[str, np.ndarray]:
    kept = predictor._features
    fine, middle = kept["high_res_feats"]
    maps = zip(LAYERS, (kept["image_embed"], middle, fine), strict=True)
    return {layer: map_1Chw[0].float().numpy() for layer, map_1Chw in maps}


def autocast(dtype: str) -> Any:
    return nullcontext() if dtype == "float32" else torch.autocast("cpu", dtype=getattr(torch, dtype))


def test_the_input_is_the_official_one(sam2, photographs):
    for side in (1024, 128):
        transform = sam2.Transforms(side, mask_threshold=0.0)
        for image in photographs:
            assert torch.equal(network.preprocess(image, side)[0], transform(image))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_features_are_the_official_ones(sam2, micro, photographs, layer, dtype):
    model, config = micro
    predictor = predictor_of(sam2.Predictor(model), config)
    teacher = build_teacher(config.model_copy(update={"layer": layer, "dtype": dtype}))
    for image, ours in zip(photographs, teacher.features(photographs, [None] * 3), strict=True):
        with autocast(dtype):
            predictor.set_image(image)
        np.testing.assert_array_equal(ours, levels(predictor)[layer])
        assert ours.std() > 0.3


@pytest.mark.parametrize(
    ("name", "yaml", "side"),
    [
        ("tiny", TINY, 1024),
        ("small", "sam2.1_hiera_s", 256),
        ("base-plus", "sam2.1_hiera_b+", 256),
        ("large", "sam2.1_hiera_l", 256),
    ],
)
def test_the_published_sizes_are_the_official_ones(sam2, photographs, tmp_path, name, yaml, side):
    config = Sam2Config(weights=f"facebook/sam2.1-hiera-{name}", image_size=side, dtype="float32", points_per_side=2)
    config = config.model_copy(update={"min_score": 0.1, "min_stability": 0.01})
    model, config = published(sam2, yaml, config, tmp_path / "sam2.1.pt")
    predictor = predictor_of(sam2.Predictor(model), config)
    predictor.set_image(photographs[0])
    for layer, theirs in levels(predictor).items():
        (ours,) = build_teacher(config.model_copy(update={"layer": layer})).features(photographs[:1], [None])
        assert ours.shape[0] == config.model_copy(update={"layer": layer}).feature_channels
        np.testing.assert_array_equal(ours, theirs)
    segmenter, box = build_segmenter(config), [20.0, 30.0, 200.0, 150.5]
    masks, scores, _ = predictor.predict(box=np.array(box), multimask_output=False)
    (found,) = segmenter.prompted(photographs[0], boxes=[box], several=False)
    assert found.score == scores[0] and np.array_equal(found.mask_HW, masks[0] > 0)
    generator = sam2.Generator(model, points_per_side=2, pred_iou_thresh=0.1, stability_score_thresh=0.01)
    predictor_of(generator.predictor, config)
    found = segmenter.segments(photographs[0])
    assert found, "nothing to compare"
    assert_same(found, generator.generate(photographs[0]))


def assert_same(ours: list[Proposal], theirs: list[dict[str, Any]]) -> None:
    assert [one.score for one in ours] == [one["predicted_iou"] for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.mask_HW, other["segmentation"])


POINTS = np.array([[[10, 20], [40, 30.5]], [[40, 58], [7, 9]], [[33, 33], [49, 1]]])
LABELS = np.array([[1, 0], [1, 1], [0, 1]])
BOXES = np.array([[5, 5, 30, 40], [20.5, 3, 49, 60], [0, 0, 50, 60]])
PROMPTS = {
    "a click": {"points": POINTS[:1, :1], "labels": LABELS[:1, :1]},
    "clicks": {"points": POINTS, "labels": LABELS},
    "a box": {"boxes": BOXES[:1]},
    "boxes": {"boxes": BOXES},
    "clicks in boxes": {"points": POINTS, "labels": LABELS, "boxes": BOXES},
}


@pytest.mark.parametrize("several", [True, False], ids=["three guesses", "one guess"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_prompts_give_the_official_masks(sam2, micro, photographs, prompt, several):
    model, config = micro
    predictor, segmenter = predictor_of(sam2.Predictor(model), config), build_segmenter(config)
    for image in photographs:
        predictor.set_image(image)
        masks, scores, _ = predictor.predict(
            prompt.get("points"), prompt.get("labels"), prompt.get("boxes"), multimask_output=several
        )
        ours = segmenter.prompted(image, **prompt, several=several)
        assert [one.score for one in ours] == scores.ravel().tolist()
        np.testing.assert_array_equal(np.stack([one.mask_HW for one in ours]), masks.reshape(-1, *image.shape[:2]) > 0)


@pytest.mark.parametrize(
    ("score", "stability", "overlap"), [(0, 0, 1), (0, 0.3, 1), (0, 0.01, 0.7), (0.3, 0.3, 0.5), (0.6, 0.45, 0.6), (2, 0, 1)]
)
def test_the_generator_gives_the_official_masks_in_order(sam2, micro, photographs, score, stability, overlap):
    model, config = micro
    thresholds = {"min_score": score, "min_stability": stability, "max_overlap": overlap, "points_per_side": 9}
    generator = sam2.Generator(
        model, points_per_side=9, pred_iou_thresh=score, stability_score_thresh=stability, box_nms_thresh=overlap
    )
    predictor_of(generator.predictor, config)
    segmenter = build_segmenter(config.model_copy(update=thresholds))
    for image in photographs:
        # With no threshold of stability the original keeps empty masks. Ours gives none.
        theirs = [one for one in generator.generate(image) if one["area"]]
        ours = segmenter.segments(image)
        assert_same(ours, theirs)
        print(f"{image.shape}: {len(ours)} masks")


def test_suppression_is_torchvisions(sam2):
    from torchvision.ops import nms

    random = torch.Generator().manual_seed(0)
    for trial in range(300):
        boxes, scores = official.crowd(random)
        limit = trial % 11 / 10
        assert filters.suppress(boxes, scores, limit).tolist() == nms(boxes.float(), scores, limit).tolist()
