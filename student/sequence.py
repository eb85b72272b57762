"""One dialogue about one picture as token arrays, and several of them as a batch.

What stands where in the row is the part of a `Layout` (layout.py). The picture and the questions are ignored by the text loss,
the answers are supervised. The n-th [SEG] of the answers stands for the n-th mask.

Shapes: L tokens of a sample, R of all, N patches of all samples, P numbers a patch, n masks of a sample, C feature channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.errors import DataError
from student.config import StudentConfig
from student.data.features import Stored
from student.eve.layout import EveLayout
from student.layout import NOT_A_PATCH, Grid, Layout, Opening, QwenLayout
from student.pixels import give_back, prompt_patches
from student.vocabulary import Vocabulary

IGNORED = -100  # a label that the text loss skips
NO_PROMPT = -2  # prompt index of a patch that no prompt covers

_VALUES = {"correct": bool, "paper": np.uint8}  # of the pixels of a target

Turn = tuple[str, str | None]


class TooLong(DataError):
    """The first turn does not fit `max_length`."""


@dataclass(frozen=True)
class Example:
    """One encoded sample, in numpy; masks and features keep their own sizes, and features are as they are stored.

    The first `block` tokens see one another.
    `dropped` counts the turns that `max_length` left out; their masks are left out with them. In the release it cuts anywhere:
    then `unpaired` says that some mask lost its [SEG], and none of the sample's masks is learned from.
    """

    sample_id: str
    tokens_L: np.ndarray
    labels_L: np.ndarray
    patch_index_L: np.ndarray
    prompt_index_L: np.ndarray
    positions_3L: np.ndarray
    patches_NP: np.ndarray
    grid: Grid | None
    masks_nHW: np.ndarray
    block: int = 0
    features: Mapping[str, Stored] = field(default_factory=dict)
    dropped: int = 0
    unpaired: bool = False


def encode(
    vocabulary: Vocabulary,
    config: StudentConfig,
    *,
    turns: Sequence[Turn],
    image: np.ndarray | None = None,
    prompts: Sequence[tuple[int, np.ndarray]] = (),
    masks: Any = (),
    features: Mapping[str, Stored] | None = None,
    sample_id: str = "",
    prefix_answer: str | None = None,
) -> Example:
    """The `Example` of a dialogue.

    turns: (question, answer) pairs; the last answer is None where the student is to give it, and `prefix_answer` then
        stands at its beginning, unsupervised. image: HWC uint8 RGB. prompts: (number k, HW bool mask) at the image's size.
    masks: n HW arrays at the image's size, one for each [SEG] of the answers, in order: where they are not 0, or, with
        `compat = "paper"`, what each pixel is to become. features: by teacher.
    Raises DataError where [SEG] and masks differ in number, a prompt marks nothing, or the first turn is too long: with
    `compat = "paper"` a dialogue to learn from is cut on the right instead.
    """
    layout = layout_of(config, vocabulary)
    patches_NP, grid = np.zeros((0, 3 * config.patch**2), np.float32), None
    if image is not None:
        patches_NP, grid = layout.patches(image)
    _check_pairs(turns, masks, sample_id)
    _check_sizes(image, [*masks, *(mask for _, mask in prompts)], sample_id)
    opening = layout.opening(grid)
    pieces = _pieces(layout, turns, grid, vocabulary.encode(prefix_answer or ""))
    asks = bool(turns) and turns[-1][1] is None
    cuts = config.compat == "paper" and not asks
    taken, limit = len(opening.tokens), layout.limit
    kept = _turns_that_fit(pieces, taken, config.max_length, sample_id=sample_id, cuts=cuts, limit=limit)
    tokens, labels = _joined(opening, pieces if cuts else pieces[:kept], config.max_length)
    kept_masks = list(masks)[: labels.count(vocabulary.seg)]
    patch_index_L = np.full(len(tokens), NOT_A_PATCH)
    prompt_index_L = patch_index_L.copy()
    if grid:
        patch_index_L[: len(opening.tokens)] = opening.patch_index
        drawn = prompts if config.compat == "paper" and asks else _largest_first(prompts)
        prompt_index_L[patch_index_L >= 0] = _prompt_index(drawn, grid, config, sample_id).ravel()
    return Example(
        sample_id=sample_id,
        tokens_L=np.array(tokens),
        labels_L=np.array(labels),
        patch_index_L=patch_index_L,
        prompt_index_L=prompt_index_L,
        positions_3L=layout.positions(len(tokens), grid),
        patches_NP=patches_NP,
        grid=grid,
        masks_nHW=np.stack(kept_masks).astype(_VALUES[config.compat]) if kept_masks else np.zeros((0, 1, 1), bool),
        block=opening.block,
        features=features or {},
        dropped=len(turns) - kept,
        unpaired=cuts and len(kept_masks) < len(masks),
    )


def layout_of(config: StudentConfig, vocabulary: Vocabulary) -> Layout:
    """How the student that `config` describes has its rows."""
    return EveLayout(config, vocabulary) if config.eve else QwenLayout(config, vocabulary)


def _segs(answer: str | None) -> int:
    return (answer or "").count("[SEG]")


def _check_pairs(turns: Sequence[Turn], masks: Any, sample_id: str) -> None:
    segs = sum(_segs(answer) for _, answer in turns)
    if segs != len(masks):
        raise DataError(f"{segs} [SEG] in the answers but {len(masks)} masks", f"sample {sample_id}")


def _check_sizes(image: np.ndarray | None, masks: Sequence[np.ndarray], sample_id: str) -> None:
    size = None if image is None else image.shape[:2]
    odd = [mask.shape for mask in masks if mask.shape != size]
    if odd:
        raise DataError(f"a mask or prompt of shape {odd[0]} on an image of shape {size}", f"sample {sample_id}")


def _pieces(layout: Layout, turns: Sequence[Turn], grid: Grid | None, begun: list[int]) -> list[tuple[list[int], list[int]]]:
    """(ignored tokens, supervised tokens) of each turn; an answer that is left open is `begun`."""
    asked = layout.asked([question for question, _ in turns], grid)
    answers = (answer for _, answer in turns)
    return [
        (tokens + begun, []) if answer is None else (tokens, layout.answered(answer))
        for tokens, answer in zip(asked, answers, strict=True)
    ]


def _turns_that_fit(
    pieces: list[tuple[list[int], list[int]]], taken: int, max_length: int, *, sample_id: str, cuts: bool, limit: str
) -> int:
    """How many leading turns fit behind `taken` tokens. A turn is kept whole or not at all; where the release `cuts`, the
    first may be none that fits, as long as its answer begins. limit: what to lower where nothing fits."""
    ends = taken + np.cumsum([len(asked) + len(answered) for asked, answered in pieces])
    kept = int((ends <= max_length).sum())
    begins = cuts and bool(pieces) and taken + len(pieces[0][0]) < max_length
    if kept == 0 and not begins:
        what = f"the first turn ends at token {ends[0]} of {max_length}" if len(ends) else "no turns"
        kind = TooLong if len(ends) else DataError
        raise kind(what, f"sample {sample_id}", f"Raise student.max_length, lower {limit}, or leave the sample out.")
    return kept


def _joined(opening: Opening, pieces: list[tuple[list[int], list[int]]], max_length: int) -> tuple[list[int], list[int]]:
    """(tokens, labels) of the opening and the turns, cut on the right."""
    tokens = list(opening.tokens)
    labels = [IGNORED] * len(tokens)
    for asked, answered in pieces:
        tokens += asked + answered
        labels += [IGNORED] * len(asked) + answered
    return tokens[:max_length], labels[:max_length]


def _largest_first(prompts: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """So that where prompts overlap the smallest is seen. The release, when it is asked, takes them as they come."""
    return sorted(prompts, key=lambda prompt: -int(np.count_nonzero(prompt[1])))


def _prompt_index(prompts: Sequence[tuple[int, np.ndarray]], grid: Grid, config: StudentConfig, sample_id: str) -> np.ndarray:
    """(h, w): the number of the prompt that covers each patch, the last where several do. In the release one that others wholly
    cover is seen nowhere."""
    index_hw = np.full(grid, NO_PROMPT)
    for k, mask_HW in prompts:
        if not 0 <= k < config.prompts:
            raise DataError(f"prompt {k} of a student with {config.prompts} prompts", f"sample {sample_id}")
        if not mask_HW.any():
            raise DataError(f"prompt {k} marks no pixel", f"sample {sample_id}", "Leave out empty regions.")
        index_hw[prompt_patches(mask_HW, grid, patch=config.patch, compat=config.compat)] = k
    return index_hw if config.compat == "paper" else give_back(index_hw, prompts)


class Span(NamedTuple):
    """Where a sample lies in the row: its first token, how many there are, and how many from the first on see one another."""

    start: int
    length: int
    block: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class Batch:
    """Samples one behind the other in one row of R tokens, nothing padded; patches of all in one list, into which
    `patch_index_R` points.

    Per sample: its `spans` in the row, `grids` (h, w) or None, `masks` (n, H, W), `features` by teacher, and whether its
    masks are `unpaired`.
    """

    sample_ids: tuple[str, ...]
    tokens_R: Tensor
    labels_R: Tensor
    patch_index_R: Tensor
    prompt_index_R: Tensor
    positions_3R: Tensor
    patches_NP: Tensor
    spans: tuple[Span, ...]
    grids: tuple[Grid | None, ...]
    masks: tuple[Tensor, ...]
    features: tuple[Mapping[str, Stored], ...]
    unpaired: tuple[bool, ...]
    dropped: int = 0

    @property
    def next_labels_R(self) -> Tensor:
        """At each place the label of the token after it. A sample's first token has none, so its neighbour's last gets none."""
        return torch.nn.functional.pad(self.labels_R[1:], (0, 1), value=IGNORED)

    @property
    def taught_masks(self) -> list[int]:
        """How many of each sample's masks are learned from."""
        return [0 if unpaired else len(masks) for masks, unpaired in zip(self.masks, self.unpaired, strict=True)]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on `device`."""
        return replace(self, **{item.name: _moved(getattr(self, item.name), device) for item in fields(self)})


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Stored):
        return value.to(device)
    if isinstance(value, tuple) and not isinstance(value, Span):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    return value


def collate(examples: Sequence[Example]) -> Batch:
    """The examples as one batch; each sample's patch index is moved by the number of patches before it."""
    patches = np.cumsum([0, *(len(example.patches_NP) for example in examples)])
    moved = [
        np.where(example.patch_index_L >= 0, example.patch_index_L + before, example.patch_index_L)
        for example, before in zip(examples, patches, strict=False)
    ]
    return Batch(
        sample_ids=tuple(example.sample_id for example in examples),
        tokens_R=_joined_up([example.tokens_L for example in examples]),
        labels_R=_joined_up([example.labels_L for example in examples]),
        patch_index_R=_joined_up(moved),
        prompt_index_R=_joined_up([example.prompt_index_L for example in examples]),
        positions_3R=_joined_up([example.positions_3L for example in examples]),
        patches_NP=torch.from_numpy(np.concatenate([example.patches_NP for example in examples])),
        spans=_spans(examples),
        grids=tuple(example.grid for example in examples),
        masks=tuple(torch.from_numpy(example.masks_nHW) for example in examples),
        features=tuple(example.features for example in examples),
        unpaired=tuple(example.unpaired for example in examples),
        dropped=sum(example.dropped for example in examples),
    )


def _spans(examples: Sequence[Example]) -> tuple[Span, ...]:
    starts = np.cumsum([0, *(len(example.tokens_L) for example in examples)]).tolist()
    return tuple(Span(start, len(example.tokens_L), example.block) for start, example in zip(starts, examples, strict=False))


def _joined_up(arrays: Sequence[np.ndarray]) -> Tensor:
    """The arrays one behind the other along their last axis."""
    return torch.from_numpy(np.concatenate(arrays, axis=-1))
