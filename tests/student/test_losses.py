import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from schemas.codecs import Basis
from schemas.dialogue import Sample, Turn
from schemas.errors import ConfigError, DataError
from schemas.features import FeatureSpec
from schemas.regions import VOID, Level, Rle
from student.config import LossConfig, OptimConfig, TeacherLoss
from student.data.corpus import Corpus
from student.data.features import Column, Stored
from student.data.samples import encode_sample
from student.losses import Distillation, choose_points, lm_loss, losses, mask_losses, point_losses, sample, share
from student.model import PixelSail
from student.sequence import IGNORED, collate, encode
from student.train_config import TrainConfig
from student.training.optim import check_finite, optimizer, step
from student.training.run import Run, TrainSetup
from student.training.saving import Saver
from tests.student.micro import micro_config, micro_vocabulary, picture, pointed, spoken, square
from tests.student.stores import small_loss

TEACHERS = {
    "sam2": TeacherLoss(reads="patches", weight=0.5),
    "mask2former": TeacherLoss(reads="mask_features", weight=2.0),
}
SPECS = {
    "sam2": FeatureSpec(teacher="sam2", layer="l", channels=4, grid=(6, 6)),
    "mask2former": FeatureSpec(teacher="mask2former", layer="l", channels=5, grid=(9, 14)),
}
COLUMNS = {name: Column(spec) for name, spec in SPECS.items()}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def loss_config(**over) -> LossConfig:
    return LossConfig(**({"points": 40, "distillation": TEACHERS} | over))


def features(rng, names=("sam2", "mask2former")) -> dict[str, Stored]:
    shapes = {name: (SPECS[name].channels, *SPECS[name].grid) for name in names}
    return {name: Stored(shape[1:], torch.from_numpy(rng.standard_normal(shape)).float()) for name, shape in shapes.items()}


def mixed(rng):
    """Two samples of one size with masks, one of another size, one without masks and one without a picture."""
    return [
        pointed(rng, 32, 48, 2, features=features(rng)),
        spoken(),
        pointed(rng, 48, 32, 0, features=features(rng, ["sam2"])),
        pointed(rng, 32, 48, 1, features=features(rng)),
        pointed(rng, 33, 64, 1, features=features(rng)),
    ]


def setup(generator):
    model = PixelSail(micro_config(), micro_vocabulary(), generator)
    return model, Distillation(micro_config(), loss_config(), COLUMNS)


def read_at(image, x: float, y: float) -> float:
    """`image` at (x, y) in [0, 1]², bilinearly, zero outside; pixel centres lie at halves."""
    height, width = image.shape
    column, row, value = x * width - 0.5, y * height - 0.5, 0.0
    for r, c in np.ndindex(2, 2):
        i, j = math.floor(row) + r, math.floor(column) + c
        if 0 <= i < height and 0 <= j < width:
            value += float(image[i, j]) * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


def test_point_losses_point_by_point(generator):
    logits = 3 * torch.randn(2, 4, 5, generator=generator)
    masks = (torch.rand(2, 11, 7, generator=generator) < 0.4).float()
    points = torch.rand(2, 30, 2, generator=generator)
    crossed = dice = 0.0
    for n in range(2):
        predicted = [read_at(logits[n], float(x), float(y)) for x, y in points[n]]
        target = [read_at(masks[n], float(x), float(y)) for x, y in points[n]]
        chance = [1 / (1 + math.exp(-logit)) for logit in predicted]
        crossed += sum(-t * math.log(p) - (1 - t) * math.log(1 - p) for p, t in zip(chance, target, strict=True))
        overlap = 2 * sum(p * t for p, t in zip(chance, target, strict=True)) + 1
        dice += 1 - overlap / (sum(chance) + sum(target) + 1)
    found = point_losses(sample(logits, points), sample(masks, points))
    assert float(found[0]) == pytest.approx(crossed / (30 + 1e-4), rel=1e-5)
    assert float(found[1]) == pytest.approx(dice / (1 + 1e-4), rel=1e-5)


def test_points_are_mostly_where_the_logits_are_least_certain(generator):
    config = loss_config(points=40, oversample=3.0, importance=0.75)
    logits = torch.randn(2, 8, 8, generator=generator)
    points = choose_points(logits, config, torch.Generator().manual_seed(3))
    drawn = torch.rand(2, 120, 2, generator=torch.Generator().manual_seed(3))
    assert points.shape == (2, 40, 2)
    for n in range(2):
        doubt = {tuple(point): abs(read_at(logits[n], *point)) for point in drawn[n].tolist()}
        chosen, left = points[n, :30].tolist(), set(doubt)
        left -= {tuple(point) for point in chosen}
        assert len(left) == 90
        assert max(doubt[tuple(point)] for point in chosen) <= min(doubt[point] for point in left) + 1e-6
        assert not {tuple(point) for point in points[n, 30:].tolist()} & set(doubt)


@torch.no_grad()
def test_samples_of_one_size_go_together_and_count_alone(rng, generator):
    model, _ = setup(generator)
    batch = collate(mixed(rng))
    output = model(batch)
    drawing = torch.Generator().manual_seed(5)
    alike = choose_points(torch.cat([output.mask_logits[0], output.mask_logits[3]]), loss_config(), drawing)
    points = {0: alike[:2], 3: alike[2:], 4: choose_points(output.mask_logits[4], loss_config(), drawing)}
    each = [point_losses(sample(output.mask_logits[i], at), sample(batch.masks[i].float(), at)) for i, at in points.items()]
    mask, dice = mask_losses(output, batch, loss_config(), torch.Generator().manual_seed(5))
    assert float(mask) == pytest.approx(2.0 * sum(float(crossed) for crossed, _ in each) / (4 + 1e-4), rel=1e-5)
    assert float(dice) == pytest.approx(0.5 * sum(float(one) for _, one in each) / (4 + 1e-4), rel=1e-5)


def test_an_empty_mask_is_learned_as_nothing():
    crossed, dice = point_losses(torch.full((1, 50), -20.0), torch.zeros(1, 50))
    assert float(crossed) < 1e-5
    assert float(dice) < 1e-5


@torch.no_grad()
def test_the_text_loss_of_samples_with_masks_is_scaled_alone(rng, generator):
    model, _ = setup(generator)
    batch = collate(mixed(rng))
    output = model(batch)
    total = count = 0.0
    for span, masks in zip(batch.spans, batch.masks, strict=True):
        for i, label in enumerate(batch.labels_R[span.rows].tolist(), start=span.start):
            if label != IGNORED:
                logits = model.logits(output.hidden_RH[i - 1])
                total += (0.1 if len(masks) else 1.0) * float(-logits.log_softmax(-1)[label])
                count += 1
    assert float(lm_loss(output, batch, loss_config())) == pytest.approx(total / count, rel=1e-5)


@torch.no_grad()
def test_in_the_release_one_mask_scales_the_text_of_its_micro_batch(rng, generator):
    model, _ = setup(generator)
    batch = collate(mixed(rng))
    output = model(batch)
    per_sample = lm_loss(output, batch, loss_config(lm=0.1, lm_with_masks=0.1))
    assert float(lm_loss(output, batch, loss_config(compat="paper"))) == pytest.approx(float(per_sample), rel=1e-6)
    spoken_alone = collate([spoken()])
    alone = [lm_loss(model(spoken_alone), spoken_alone, loss_config(compat=compat)) for compat in ("correct", "paper")]
    assert float(alone[0]) == float(alone[1])


@torch.no_grad()
def test_in_the_release_every_micro_batch_weighs_alike(rng, generator):
    model, _ = setup(generator)
    pieces = [collate([spoken()]), collate([spoken("Why?", "A small blue square beside it, and a red circle.")])]
    losses_of_pieces = [float(lm_loss(model(piece), piece, loss_config())) for piece in pieces]
    sizes = [torch.tensor([float((piece.next_labels_R != IGNORED).sum())]) for piece in pieces]
    whole = collate([spoken(), spoken("Why?", "A small blue square beside it, and a red circle.")])
    summed = {
        compat: sum(
            loss * float(share(size, sum(sizes), len(pieces), loss_config(compat=compat)))
            for loss, size in zip(losses_of_pieces, sizes, strict=True)
        )
        for compat in ("correct", "paper")
    }
    assert summed["correct"] == pytest.approx(float(lm_loss(model(whole), whole, loss_config())), rel=1e-5)
    assert summed["paper"] == pytest.approx(sum(losses_of_pieces) / 2, rel=1e-6)
    assert sizes[0] < sizes[1] / 2
    assert summed["paper"] != pytest.approx(summed["correct"], rel=1e-3)


def test_a_step_of_the_release_is_the_mean_of_its_micro_batches(small_store):
    parts = {"samples": small_store.samples, "images": small_store.images, "features": small_store.features}
    known = {"vocabulary": micro_vocabulary(), "corpus": Corpus(**parts, vocabulary=micro_vocabulary(), config=micro_config())}
    config = TrainConfig(steps=1, batch=2, micro_batch=1)

    def stepped(compat: str, *numbers: int) -> dict:
        moved = {"student": micro_config(), "loss": small_loss(compat=compat), "optim": OptimConfig(), "train": config}
        setup = TrainSetup(**known, **moved, identity={"by": [compat, *numbers]})
        with Saver() as saver:
            run = Run.begin(setup, small_store.folder.child(f"{compat}-{numbers}"), saver)
        return run.step(0, [(place, collate([setup.corpus[number]])) for place, number in enumerate(numbers)])

    alone, together, correct = [stepped("correct", n) for n in (0, 1)], stepped("paper", 0, 1), stepped("correct", 0, 1)
    for name in ("lm", "distill/sam2"):
        assert together[name] == pytest.approx(sum(row[name] for row in alone) / 2, rel=1e-5)
    assert correct["lm"] != pytest.approx(together["lm"], rel=1e-3)


def test_masks_of_a_sample_that_was_cut_teach_nothing(rng, generator):
    model, _ = setup(generator)
    whole = pointed(rng, 32, 48, 2)
    seg = np.flatnonzero(whole.labels_L == micro_vocabulary().seg)
    length = int(seg[1])
    turns, marks = [(f"Please segment number {k}.", "It is [SEG].") for k in range(2)], [square(32, 48, 2, 2, 8)] * 2
    config = micro_config(compat="paper", max_length=length)
    settings = {"turns": turns, "masks": marks, "image": picture(rng, 32, 48), "sample_id": "cut"}
    cut = collate([encode(micro_vocabulary(), config, **settings)])
    assert (cut.unpaired, len(cut.masks[0]), len(cut.tokens_R)) == ((True,), 1, length)
    output = model(cut)
    assert [float(loss.detach()) for loss in mask_losses(output, cut, loss_config(), generator)] == [0.0, 0.0]
    same = loss_config(lm_with_masks=1.0)
    assert float(lm_loss(output, cut, loss_config()).detach()) == float(lm_loss(output, cut, same).detach())
    sum(mask_losses(output, cut, loss_config(), generator)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.seg_token_projector.parameters())
    beside = collate([encode(micro_vocabulary(), config, **settings), whole])
    both = mask_losses(model(beside), beside, loss_config(), torch.Generator().manual_seed(5))[0]
    alone = mask_losses(model(collate([whole])), collate([whole]), loss_config(), torch.Generator().manual_seed(5))[0]
    assert float(both.detach()) == pytest.approx(float(alone.detach()), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("compat", "sums"), [("correct", False), ("paper", True)])
def test_the_release_sums_what_covers_a_pixel(rng, generator, compat, sums):
    model, _ = setup(generator)
    inside, twice = Rle.of(square(32, 48, 4, 4, 20)), Rle.of(square(32, 48, 8, 8, 12))
    stored = Sample("a", "k", "train", "segmentation", [Turn("Where?", "[SEG].")], [inside])
    shown = picture(rng, 32, 48)

    def loss(levels: list[Level], like: str = compat) -> float:
        config = micro_config(compat=like)
        batch = collate([encode_sample(micro_vocabulary(), config, replace(stored, levels=[levels]), shown)])
        return float(mask_losses(model(batch), batch, loss_config(), torch.Generator().manual_seed(5))[0])

    summed, void = [Level(2, twice)], [Level(VOID, twice)]
    gained = loss([]) - loss([Level(3, twice)])  # cross-entropy falls evenly with what a pixel is to become
    assert loss([]) - loss(summed) == pytest.approx(gained / 2, rel=1e-3, abs=1e-6)
    assert (gained != 0) is sums
    assert loss(void) == loss([]) == loss([], "correct")


@torch.no_grad()
def test_the_release_rounds_what_it_reads_at_points(rng, generator):
    model, _ = setup(generator)
    batch = collate(mixed(rng))
    output = model(batch)
    halved = replace(output, mask_logits=[logits if logits is None else logits.bfloat16() for logits in output.mask_logits])
    losses_of = lambda config: mask_losses(halved, batch, config, torch.Generator().manual_seed(5))[0]  # noqa: E731
    points, rounded = torch.Generator().manual_seed(5), 0.0
    for chosen in ([0, 3], [4]):
        logits = torch.cat([halved.mask_logits[i] for i in chosen]).float()
        at = choose_points(logits, loss_config(), points).split([len(batch.masks[i]) for i in chosen])
        for i, own in zip(chosen, at, strict=True):
            read = [sample(maps.float(), own).bfloat16().float() for maps in (halved.mask_logits[i], batch.masks[i])]
            rounded += float(point_losses(*read)[0])
    assert float(losses_of(loss_config(compat="paper"))) == pytest.approx(2.0 * rounded / (4 + 1e-4), rel=1e-5)
    assert float(losses_of(loss_config())) != pytest.approx(2.0 * rounded / (4 + 1e-4), rel=1e-5)


@torch.no_grad()
def test_distillation_image_by_image(rng, generator):
    model, distillation = setup(generator)
    batch = collate(mixed(rng))
    output = model(batch)
    found = distillation(output, batch)
    for name, weight in (("sam2", 0.5), ("mask2former", 2.0)):
        shown = [i for i, own in enumerate(batch.features) if name in own]
        total = 0.0
        for i in shown:
            own = output.patches[i] if name == "sam2" else output.mask_features[i].permute(1, 2, 0)
            teacher, (h, w) = batch.features[i][name].values, own.shape[:2]
            target = F.interpolate(teacher[None], size=(h, w), mode="bilinear", align_corners=False)[0]
            linear = distillation.into[name]
            squares = [
                ((linear.weight @ own[y, x] + linear.bias) - target[:, y, x]).square() for y in range(h) for x in range(w)
            ]
            total += float(torch.stack(squares).mean())
        assert float(found[name]) == pytest.approx(weight * total / (len(shown) + 1e-4), rel=1e-5)


@torch.no_grad()
def test_losses_are_in_float32_whatever_the_student_was_carried_out_in(rng, generator):
    spec = FeatureSpec(teacher="sam2", layer="l", channels=4, grid=(6, 6), codec="pca2-int8")
    axes, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    basis = Basis(rng.standard_normal(4).astype(np.float32), axes[:, :2].astype(np.float32))
    stored = Stored((6, 6), torch.from_numpy(rng.integers(-127, 128, (2, 6, 6), np.int8)), torch.rand(2, generator=generator))
    config = loss_config(distillation={"sam2": TEACHERS["sam2"]})
    distillation = Distillation(micro_config(), config, {"sam2": Column(spec, basis)})
    batch = collate([pointed(rng, 32, 48, 2, features={"sam2": stored}), spoken()])
    output = PixelSail(micro_config(), micro_vocabulary(), generator)(batch)
    expected = losses(output, batch, distillation, config, generator.manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(output, batch, distillation, config, generator.manual_seed(1))
    assert {name: float(loss) for name, loss in found.items()} == {name: float(loss) for name, loss in expected.items()}


@torch.no_grad()
def test_the_total_is_the_sum_of_the_parts(rng, generator):
    model, distillation = setup(generator)
    batch = collate(mixed(rng))
    parts = losses(model(batch), batch, distillation, loss_config(), generator)
    assert set(parts) == {"lm", "mask", "dice", "distill/sam2", "distill/mask2former", "total"}
    assert float(parts["total"]) == pytest.approx(sum(float(parts[name]) for name in parts if name != "total"), rel=1e-6)
    assert all(part.dtype == torch.float32 for part in parts.values())


@torch.no_grad()
def test_the_points_come_from_the_generator_alone(rng, generator):
    model, distillation = setup(generator)
    batch = collate(mixed(rng))
    output = model(batch)
    first, same, other = (
        float(losses(output, batch, distillation, loss_config(), torch.Generator().manual_seed(seed))["mask"])
        for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("kind", ["text", "no masks", "no features", "everything"])
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(rng, generator, kind):
    examples = {
        "text": [spoken(), spoken("Why?")],
        "no masks": [pointed(rng, 32, 48, 0, features=features(rng))],
        "no features": [pointed(rng, 32, 48, 2)],
        "everything": mixed(rng),
    }[kind]
    model, distillation = setup(generator)
    batch = collate(examples)
    losses(model(batch), batch, distillation, loss_config(), generator)["total"].backward()
    without = [name for name, p in [*model.named_parameters(), *distillation.named_parameters()] if p.grad is None]
    assert without == []
    moved = model.single_transformer.model.embed_tokens.weight.grad
    assert moved.isfinite().all()
    assert moved.abs().sum() > 0
    head = sum(float(p.grad.abs().sum()) for p in model.seg_token_projector.parameters())
    assert (head > 0) == (kind in {"no features", "everything"})


def test_features_of_a_sample_without_mask_features_are_an_error(rng, generator):
    model, distillation = setup(generator)
    assert distillation.reads_mask_features
    batch = collate([pointed(rng, 32, 48, 0, features=features(rng), sample_id="s7")])
    with pytest.raises(DataError, match="sample s7: teacher features but no mask_features"):
        distillation(model(batch, every_picture=False), batch)


def test_a_teacher_without_features_or_without_a_loss_is_refused():
    with pytest.raises(ConfigError, match="radio, sam2"):
        Distillation(micro_config(), loss_config(), {"mask2former": COLUMNS["mask2former"], "radio": COLUMNS["sam2"]})


def test_no_teachers_cost_nothing(rng, generator):
    model, _ = setup(generator)
    config = loss_config(distillation={})
    distillation = Distillation(micro_config(), config, {})
    assert not distillation.reads_mask_features
    batch = collate(mixed(rng))
    parts = losses(model(batch, distillation.reads_mask_features), batch, distillation, config, generator)
    assert set(parts) == {"lm", "mask", "dice", "total"}


def test_reading_a_map_at_the_centre_of_a_pixel_gives_the_pixel(generator):
    image = torch.randn(1, 3, 5, generator=generator)
    points = torch.tensor([[[(x + 0.5) / 5, (y + 0.5) / 3] for y in range(3) for x in range(5)]])
    torch.testing.assert_close(sample(image, points)[0], image[0].flatten(), rtol=1e-5, atol=1e-5)


def test_a_student_learns_one_batch_by_heart(rng, generator):
    model, distillation = setup(generator)
    batch, config = collate(mixed(rng)), loss_config(points=100)
    moved = optimizer([*model.parameters(), *distillation.parameters()], OptimConfig())
    totals = []
    for _ in range(30):
        parts = losses(model(batch), batch, distillation, config, generator)
        check_finite(parts, batch.sample_ids)
        parts["total"].backward()
        step(moved, 4e-3, 1.0, batch.sample_ids)
        totals.append({name: float(part.detach()) for name, part in parts.items()})
    assert totals[-1]["total"] < 0.4 * totals[0]["total"]
    assert totals[-1]["mask"] < 0.5 * totals[0]["mask"]
    assert totals[-1]["lm"] < 0.4 * totals[0]["lm"]
