"""What is asked of a Mask2Former that learns: the right query for each region, the authors' losses, the same bytes again."""

import itertools

import numpy as np
import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import dice_loss, sigmoid_cross_entropy_loss

from schemas.errors import NonFinite
from teachers.mask2former import learn
from teachers.mask2former.assignment import assignment
from teachers.mask2former.config import Learning, Mask2FormerConfig

CONFIG = Mask2FormerConfig(weights="taught", shortest_edge=64, longest_edge=96, things=2)
NAMES = {0: "blue", 1: "red", 8: "ground"}
POINTS = 64


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (4, 4), (0, 3)])
def test_an_assignment_is_the_cheapest_there_is(rng, size):
    for draw in range(20):
        cost_RC = rng.normal(size=size) if draw % 2 else rng.integers(-2, 3, size).astype(float)
        rows, columns = assignment(cost_RC)
        short_RC = cost_RC if size[0] <= size[1] else cost_RC.T
        ways = itertools.permutations(range(short_RC.shape[1]), len(short_RC))
        cheapest = min(sum(short_RC[row, column] for row, column in enumerate(way)) for way in ways)
        assert len(rows) == len(columns) == len(set(columns)) == min(size) and list(rows) == sorted(set(rows))
        assert cost_RC[rows, columns].sum() == pytest.approx(cheapest)


def squares(rng: np.random.Generator, count: int, height: int = 64, width: int = 64) -> learn.Lesson:
    """`count` bright squares, of the label that their colour says, on a dark ground."""
    image, labels = np.full((height, width, 3), 30, np.uint8), []
    masks_THW = np.zeros((count + 1, height, width), bool)
    for number in range(count):
        top, left = rng.integers(0, 20), 21 * number
        labels.append(int(rng.integers(0, 2)))
        masks_THW[number, top : top + 20, left : left + 20] = True
        image[masks_THW[number]] = (220, 60, 40) if labels[-1] else (40, 60, 220)
    masks_THW[count] = ~masks_THW.any(0)
    return learn.lesson(image, masks_THW, [*labels, 2], CONFIG)


def perfect(lesson: learn.Lesson, queries: list[int], count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a network that finds each region by the query that is named for it."""
    masks_Qhw, classes_QL = torch.full((count, 64, 64), -6.0), torch.zeros(count, 14)
    classes_QL[:, -1] = 30.0
    for query, mask_HW, label in zip(queries, lesson.masks_THW, lesson.labels_T, strict=True):
        masks_Qhw[query] += 12 * mask_HW
        classes_QL[query, [-1, int(label)]] = torch.tensor([0.0, 30.0])
    return classes_QL, masks_Qhw


def test_each_region_goes_to_the_query_that_finds_it(rng):
    lesson = squares(rng, 3)
    classes_QL, masks_Qhw = perfect(lesson, [6, 0, 3, 5])
    regions, queries = learn.match(classes_QL, masks_Qhw, lesson, POINTS, torch.Generator())
    assert regions.tolist() == [0, 1, 2, 3] and queries.tolist() == [6, 0, 3, 5]


def test_the_loss_is_nothing_for_who_finds_all_and_grows_with_every_layer(rng):
    lesson = squares(rng, 2)
    classes_QL, masks_Qhw = perfect(lesson, [1, 4, 2])
    layer = classes_QL[None], masks_Qhw[None]
    assert max(map(float, learn.loss_of([layer], [lesson], POINTS, torch.Generator()).values())) < 0.5  # points on an edge
    blank = torch.zeros(1, 8, 14), torch.zeros(1, 8, 64, 64)
    one, two = (learn.loss_of([blank] * count, [lesson], POINTS, torch.Generator()) for count in (1, 2))
    assert float(two["class"]) == pytest.approx(2 * float(one["class"])) == pytest.approx(4 * np.log(14))
    assert float(one["mask"]) == pytest.approx(5 * np.log(2), rel=1e-4)


def test_masks_are_compared_as_the_library_compares_them(rng):
    lesson, logits_Thw = squares(rng, 3), torch.from_numpy(rng.normal(0, 3, (4, 16, 16))).float()
    mine = learn.mask_losses(logits_Thw, lesson.masks_THW, POINTS, torch.Generator().manual_seed(3))
    places_TP2 = learn.unsure(logits_Thw, POINTS, torch.Generator().manual_seed(3))
    found_TP, wanted_TP = (learn.sampled(maps, places_TP2) for maps in (logits_Thw, lesson.masks_THW))
    theirs = sigmoid_cross_entropy_loss(found_TP, wanted_TP, 1), dice_loss(found_TP, wanted_TP, 1)
    torch.testing.assert_close(mine, theirs)


def test_most_points_lie_where_the_mask_is_unsure():
    logits_Thw = torch.linspace(9, -9, 16).expand(1, 16, 16)
    places_TP2 = learn.unsure(logits_Thw, 200, torch.Generator().manual_seed(0))
    near = ((places_TP2[..., 0] - 0.5).abs() < 0.15).float().mean()
    assert 0.6 < float(near) < 0.95 and places_TP2.shape == (1, 200, 2)


def taught(steps: int, lessons: list[learn.Lesson], seed: int = 0) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    network = learn.untaught(CONFIG.model_copy(update={"seed": seed}), NAMES)
    plan = Learning(steps=steps, batch=len(lessons), points=POINTS, warmup=2)
    told: list[int] = []
    history = learn.learn(network, plan, lambda step: lessons, seed=seed, report=lambda step, losses: told.append(step))
    assert told == [*range(1, steps + 1)]
    return learn.files(network), history


def test_it_learns_and_learns_the_same_again(rng):
    """From pictures of two sizes."""
    lessons = [squares(rng, 2), squares(rng, 3), squares(rng, 3, 64, 96)]
    random, before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    files, history = taught(15, lessons)
    assert sum(history[-1].values()) < 0.8 * sum(history[0].values())
    assert torch.equal(torch.get_rng_state(), random) and torch.are_deterministic_algorithms_enabled() == before
    short, again, other = (taught(2, lessons, seed)[0] for seed in (0, 0, 1))
    assert short == again
    assert len({found["model.safetensors"] for found in (files, short, other)}) == 3


def test_what_is_no_number_moves_no_weight(rng):
    network = learn.untaught(CONFIG, NAMES)
    with torch.no_grad():
        network.class_predictor.bias[0] = torch.nan
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(NonFinite, match="cost is not finite.*learning_rate"):
        learn.learn(network, Learning(steps=1), lambda step: [squares(rng, 2)], seed=0, report=lambda *told: None)
    assert all(torch.equal(old, new) or old.isnan().any() for old, new in zip(before, network.parameters(), strict=True))
