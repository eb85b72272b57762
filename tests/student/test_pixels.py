import networkx as nx
import numpy as np
import pytest
from PIL import Image

from schemas.grids import patched_size
from student.pixels import give_back, patches_of, prompt_patches
from tests.student.micro import picture, square
from tests.student.reference import marks

VECTORS = {
    (640, 480): (640, 480),
    (640, 427): (640, 432),
    (333, 500): (352, 512),
    (1500, 2250): (688, 1024),
    (3000, 50): (1024, 32),
    (10, 20): (16, 32),
    (5000, 3): (1024, 16),
}


@pytest.mark.parametrize(("before", "after"), VECTORS.items())
def test_sizes_of_the_reference(before, after):
    assert patched_size(*before, patch=16, max_side=1024) == after
    assert patched_size(*before[::-1], patch=16, max_side=1024) == after[::-1]


def test_patches_run_by_rows_and_hold_channel_row_column(rng):
    image = picture(rng, 30, 50)
    patches, grid = patches_of(image, patch=4, max_side=40)
    assert grid == (6, 10)
    small = np.asarray(Image.fromarray(image).resize((40, 24), Image.Resampling.BILINEAR)) / 255.0
    for number, channel, row, column in rng.integers(0, (60, 3, 4, 4), (200, 4)):
        y, x = number // 10 * 4 + row, number % 10 * 4 + column
        expected = (small[y, x, channel] - (0.485, 0.456, 0.406)[channel]) / (0.229, 0.224, 0.225)[channel]
        assert patches[number, channel * 16 + row * 4 + column] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(37, 23), (7, 16), (64, 48), (16, 3)])
def test_a_single_pixel_always_marks_one_patch(height, width):
    new_width, new_height = patched_size(width, height, patch=4, max_side=16)
    grid = new_height // 4, new_width // 4
    for y, x in np.ndindex(height, width):
        mask = np.zeros((height, width), bool)
        mask[y, x] = True
        assert prompt_patches(mask, grid).sum() == 1


def test_points_on_a_large_picture_survive(rng):
    for y, x in zip(rng.integers(0, 1500, 60), rng.integers(0, 2250, 60), strict=True):
        mask = np.zeros((1500, 2250), bool)
        mask[y, x] = True
        assert prompt_patches(mask, (43, 64)).any()


def nearest_flags(mask: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """Pixel by pixel: that of the shrunk mask is the one whose place its centre falls on."""
    (height, width), (h, w) = mask.shape, grid
    flags = np.zeros(grid, bool)
    for y, x in np.ndindex(h * patch, w * patch):
        flags[y // patch, x // patch] |= mask[(2 * y + 1) * height // (2 * h * patch), (2 * x + 1) * width // (2 * w * patch)]
    return flags


@pytest.mark.parametrize(("height", "width"), [(90, 70), (33, 64), (24, 32)])
def test_the_release_shrinks_a_mask_before_it_looks_for_pixels(rng, height, width):
    mask = rng.random((height, width)) < 0.01
    np.testing.assert_array_equal(prompt_patches(mask, (6, 8), patch=4, compat="paper"), nearest_flags(mask, (6, 8), 4))


def test_the_release_loses_most_points_on_a_large_picture(rng):
    """231 of 300 by the reference; the share of pixels that are thrown away is 0.79."""
    lost = 0
    for y, x in zip(rng.integers(0, 1500, 60), rng.integers(0, 2250, 60), strict=True):
        mask = np.zeros((1500, 2250), bool)
        mask[y, x] = True
        lost += not prompt_patches(mask, (43, 64), patch=16, compat="paper").any()
    assert 36 < lost < 58


def test_without_a_resize_a_patch_is_marked_where_its_own_pixels_are(rng):
    mask = rng.random((24, 32)) < 0.02
    expected = np.array([[mask[r : r + 4, c : c + 4].any() for c in range(0, 32, 4)] for r in range(0, 24, 4)])
    np.testing.assert_array_equal(prompt_patches(mask, (6, 8)), expected)


@pytest.mark.parametrize(("height", "width", "grid"), [(24, 20, (28, 23)), (3, 40, (5, 9)), (7, 4, (3, 9)), (1, 1, (4, 4))])
def test_a_mark_on_a_picture_of_fewer_pixels_than_patches_has_no_holes(height, width, grid):
    assert prompt_patches(np.ones((height, width), bool), grid).all()
    for y, x in np.ndindex(height, width):
        mask = np.zeros((height, width), bool)
        mask[y, x] = True
        expected = {(int((y + 0.5) * grid[0] / height), int((x + 0.5) * grid[1] / width))}
        for row, column in np.ndindex(grid):
            if (int((row + 0.5) * height / grid[0]), int((column + 0.5) * width / grid[1])) == (y, x):
                expected.add((row, column))
        assert set(map(tuple, np.argwhere(prompt_patches(mask, grid)).tolist())) == expected


def marked(*prompts: np.ndarray) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """The prompts, the largest first, written one upon the other on a grid of 4 by 4 patches of 4 by 4 pixels."""
    index, numbered = np.full((4, 4), -2), list(enumerate(prompts))
    for k, mask in numbered:
        index[prompt_patches(mask, (4, 4))] = k
    return index, numbered


def test_a_prompt_under_another_has_the_patch_of_most_of_its_pixels():
    below, above = square(16, 16, 2, 2, 5), np.zeros((16, 16), bool)
    above[[3, 3, 4, 4], [3, 4, 3, 4]] = True  # a pixel in each of the four patches that the prompt below has
    index, prompts = marked(below, above)
    assert (index == 0).sum() == 0
    given = give_back(index, prompts)
    assert np.argwhere(given == 0).tolist() == [[1, 1]]
    assert np.argwhere(given == 1).tolist() == [[0, 0], [0, 1], [1, 0]]
    assert (given == -2).sum() == 12
    assert (index == 0).sum() == 0, "what was given stays as it was"


def test_no_prompt_loses_its_last_patch_and_the_smallest_takes_first():
    spots = [square(16, 16, 0, 0, side) for side in (4, 3, 2)]
    alone, prompts = marked(*spots)
    assert give_back(alone, prompts).tolist() == alone.tolist()
    wide = np.zeros((16, 16), bool)
    wide[1, 1:6] = True  # on two patches
    index, prompts = marked(spots[0], spots[1], wide)
    given = give_back(index, prompts)
    assert given[0].tolist() == [1, 2, -2, -2]


def test_prompts_upon_each_other_are_given_as_by_plain_loops(rng):
    """Those that find a patch whose owner has another. Where one does not, others make way."""
    given_back = made_way = 0
    for _ in range(60):
        masks = [square(16, 16, *rng.integers(0, 12, 2), side) for side in (8, 5, 3, 2, 1)]
        index, prompts = marked(*masks)
        given, plain = give_back(index, prompts), marks(prompts, (4, 4))
        if set(range(5)) <= set(plain):
            assert given.ravel().tolist() == plain
            given_back += len(set(range(5)) - set(index.flat))
        else:
            made_way += 1
    assert given_back and made_way


def test_a_prompt_stays_hidden_only_where_there_are_not_patches_enough(rng):
    made_way = hidden = 0
    for _ in range(200):
        index, prompts = marked(*(square(16, 16, *rng.integers(0, 8, 2), rng.integers(1, 5)) for _ in range(8)))
        given, patches = give_back(index, prompts), nx.Graph()
        patches.add_nodes_from(range(8))
        for k, mask in prompts:
            patches.add_edges_from((k, ("patch", place)) for place in np.flatnonzero(prompt_patches(mask, (4, 4))))
            assert prompt_patches(mask, (4, 4))[given == k].all()
        most = len(nx.bipartite.hopcroft_karp_matching(patches, range(8))) // 2
        assert len({*given.flat} - {-2}) == most
        assert ((given == -2) == (index == -2)).all()
        hidden += most < 8
        made_way += most > len({*marks(prompts, (4, 4))} - {-2})
    assert made_way and hidden
