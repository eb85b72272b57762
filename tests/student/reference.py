"""Pixel-SAIL written out, to hold the fast code against: every number by a loop and dot products, all in float64.

It follows the description of the authors' code and shares nothing with `student/` but the sizes in the config, the tokenizer
and the names of the tensors. No kernels and no batches: samples go one by one, tokens one by one, pixels one by one.

Shapes: L tokens, H hidden, D numbers of a head, h×w patch grid, h'×w' mask grid, d and s channels of the mask head, n masks,
S supervised tokens, V vocabulary, P points, C channels of a teacher.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from student.config import StudentConfig
from student.vocabulary import Vocabulary

Vector = np.ndarray
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IGNORED = -100


@dataclass(frozen=True)
class Raw:
    """A sample before anything is done to it; what the fields hold is what `encode` takes, `maps` are (C, y, x) by teacher."""

    turns: Sequence[tuple[str, str]]
    image: np.ndarray | None = None
    prompts: Sequence[tuple[int, np.ndarray]] = ()
    masks: Sequence[np.ndarray] = ()
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)


def picture_size(width: int, height: int, patch: int, max_side: int) -> tuple[int, int]:
    """(width, height) of the picture that the student sees."""
    long, short = max(width, height), min(width, height)
    new_long = min(math.ceil(long / patch) * patch, max_side)
    new_short = max(math.ceil(int(new_long * short / long) / patch) * patch, patch)
    return (new_long, new_short) if width >= height else (new_short, new_long)


def triangle(x: float) -> float:
    """What Pillow's bilinear filter is made of."""
    return max(1 - abs(x), 0.0)


def resampled(lines_nE: np.ndarray, size: int, shape: Callable[[float], float] = triangle, width: int = 1) -> np.ndarray:
    """The lines of a picture as `size` lines, as Pillow's filters do it: a `shape` that is zero beyond `width`, as wide as the
    shrinking, weights of 22 binary digits, rounded to whole grey values."""
    count, made = len(lines_nE), []
    scale = count / size
    stretch = max(scale, 1.0)
    for i in range(size):
        centre, reach = (i + 0.5) * scale, width * stretch
        first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), count)
        weights = [shape((j + 0.5 - centre) / stretch) for j in range(first, end)]
        exact = [weight / sum(weights) * (1 << 22) for weight in weights]
        whole = [int(weight + math.copysign(0.5, weight)) for weight in exact]
        total = sum(weight * lines_nE[j].astype(int) for j, weight in zip(range(first, end), whole, strict=True))
        made.append(np.clip((total + (1 << 21)) >> 22, 0, 255))
    return np.array(made)


def picture_patches(image_HWC: np.ndarray, config: StudentConfig) -> tuple[list[Vector], tuple[int, int]]:
    """The patches row by row, each (3·p·p) in the order channel, row, column; and their grid (h, w)."""
    width, height = picture_size(image_HWC.shape[1], image_HWC.shape[0], config.patch, config.max_side)
    wide_WHC = resampled(image_HWC.transpose(1, 0, 2), width)
    return cut(resampled(wide_WHC.transpose(1, 0, 2), height), config.patch, MEAN, DEVIATION)


def cut(
    pixels_HWC: np.ndarray, p: int, mean: Sequence[float], deviation: Sequence[float]
) -> tuple[list[Vector], tuple[int, int]]:
    """The patches of a picture of whole patches, and their grid."""
    height, width, patches = *pixels_HWC.shape[:2], []
    for row in range(height // p):
        for column in range(width // p):
            places = [(c, row * p + y, column * p + x) for c in range(3) for y in range(p) for x in range(p)]
            patches.append(np.array([(pixels_HWC[y, x, c] / 255 - mean[c]) / deviation[c] for c, y, x in places]))
    return patches, (height // p, width // p)


@dataclass(frozen=True)
class Tokens:
    """A sample as tokens; `patch` and `prompt` are -1 where there is none, `prompt` -2 at patches that nothing marks."""

    ids: list[int]
    labels: list[int]
    patch: list[int]
    prompt: list[int]
    positions: list[tuple[int, int, int]]
    block: int  # tokens of <vision> … </vision>

    def sees(self, i: int, j: int) -> bool:
        """Whether token i may look at token j."""
        return j <= i or (i < self.block and j < self.block)


def tokens_of(raw: Raw, grid: tuple[int, int] | None, vocabulary: Vocabulary) -> Tokens:
    ids, labels, patch, prompt = [], [], [], []

    def add(piece: list[int], supervised: bool) -> None:
        ids.extend(piece)
        labels.extend(piece if supervised else [IGNORED] * len(piece))

    if grid is not None:
        add([*vocabulary.encode("<vision>"), *vocabulary.encode("<vpatch>") * (grid[0] * grid[1])], supervised=False)
        add(vocabulary.encode("</vision>"), supervised=False)
        patch += [-1, *range(grid[0] * grid[1]), -1]
        prompt += [-1, *marks(raw.prompts, grid), -1]
    block = len(ids)
    for question, answer in raw.turns:
        add(vocabulary.encode(f"<|im_start|>user\n{question.strip()}<|im_end|>\n"), supervised=False)
        add(vocabulary.encode(answer.strip()) + vocabulary.encode("<|endoftext|>"), supervised=True)
    text = [-1] * (len(ids) - block)
    return Tokens(ids, labels, patch + text, prompt + text, [position(i, grid) for i in range(len(ids))], block)


def marks(prompts: Sequence[tuple[int, np.ndarray]], grid: tuple[int, int]) -> list[int]:
    """The prompt of each patch: written from the largest region to the smallest, so that the smallest stays on top. From the
    smallest to the largest, one that has been covered wholly then takes a patch back."""
    found = [-2] * (grid[0] * grid[1])
    ordered = sorted(prompts, key=lambda prompt: prompt[1].sum(), reverse=True)
    for k, mask_HW in ordered:
        height, width = mask_HW.shape
        for y, x in zip(*np.nonzero(mask_HW), strict=True):
            row, column = int((y + 0.5) * grid[0] / height), int((x + 0.5) * grid[1] / width)
            found[row * grid[1] + column] = k
    for k, mask_HW in reversed(ordered):
        if k not in found and (place := best_place(mask_HW, grid, found)) is not None:
            found[place] = k
    return found


def best_place(mask_HW: np.ndarray, grid: tuple[int, int], found: Sequence[int]) -> int | None:
    """The patch with most of the region's pixels among those whose prompt keeps another, the first of equals."""
    counts = [0] * len(found)
    for y, x in zip(*np.nonzero(mask_HW), strict=True):
        row, column = int((y + 0.5) * grid[0] / mask_HW.shape[0]), int((x + 0.5) * grid[1] / mask_HW.shape[1])
        counts[row * grid[1] + column] += 1
    best = None
    for place, count in enumerate(counts):
        if count and found.count(found[place]) > 1 and (best is None or count > counts[best]):
            best = place
    return best


def position(i: int, grid: tuple[int, int] | None) -> tuple[int, int, int]:
    """(time, row, column) of token i."""
    if grid is None or i == 0:
        return i, i, i
    h, w = grid
    if i <= h * w:
        row, column = divmod(i - 1, w)
        return 1, 1 + row, 1 + column
    return (1 + max(h, w) + i - h * w - 1,) * 3


# --- the student


@dataclass(frozen=True)
class Made:
    """What the student makes of a sample: None or nothing where it has no picture or no masks."""

    tokens: Tokens
    patches_NP: list[Vector]
    logits_SV: list[Vector]
    patches_hwH: np.ndarray | None
    features_hws: np.ndarray | None
    mask_logits_nhw: np.ndarray


class Reference:
    """The student with these `tensors`, by the names of the checkpoint."""

    def __init__(self, config: StudentConfig, vocabulary: Vocabulary, tensors: Mapping[str, Any]):
        self.config, self.vocabulary = config, vocabulary
        self.tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}

    def __call__(self, raw: Raw) -> Made:
        patches, grid = ([], None) if raw.image is None else self.patches(raw.image)
        tokens = self.tokens(raw, grid)
        x_LH = [self.embedded(tokens, patches, i) for i in range(len(tokens.ids))]
        for layer in range(self.config.layers):
            x_LH = self.block(f"single_transformer.model.layers.{layer}", x_LH, tokens)
        hidden_LH = [self.normed("single_transformer.model.norm", x) for x in x_LH]
        seen = [x for x, patch in zip(hidden_LH, tokens.patch, strict=True) if patch >= 0]
        patches_hwH = np.array(seen).reshape(*grid, -1) if grid else None
        features_hws = None if patches_hwH is None else self.mask_features(patches_hwH)
        seg = self.vocabulary.encode("[SEG]")[0]
        asked = [x for x, label in zip(hidden_LH, tokens.labels, strict=True) if label == seg]
        supervised = [i for i, label in enumerate(tokens.labels) if label != IGNORED]
        return Made(
            tokens,
            patches,
            logits_SV=[self.head_VH() @ hidden_LH[i - 1] for i in supervised],
            patches_hwH=patches_hwH,
            features_hws=features_hws,
            mask_logits_nhw=np.array([self.mask(self.query(x), features_hws) for x in asked]),
        )

    def patches(self, image_HWC: np.ndarray) -> tuple[list[Vector], tuple[int, int]]:
        return picture_patches(image_HWC, self.config)

    def tokens(self, raw: Raw, grid: tuple[int, int] | None) -> Tokens:
        return tokens_of(raw, grid, self.vocabulary)

    def of(self, name: str, tokens: Tokens, i: int) -> str:
        """The part of that name that token i goes through."""
        return name

    def linear(self, name: str, x: Vector) -> Vector:
        product = self.tensors[f"{name}.weight"] @ x
        bias = self.tensors.get(f"{name}.bias")
        return product if bias is None else product + bias

    def head_VH(self) -> np.ndarray:
        tied = self.config.tie_embeddings
        return self.tensors[f"single_transformer.{'model.embed_tokens' if tied else 'lm_head'}.weight"]

    def embedded(self, tokens: Tokens, patches: Sequence[Vector], i: int) -> Vector:
        """E[token] + Wvis · patch + Wvp · E[prompt], of which a text token has only the first."""
        table_VH = self.tensors["single_transformer.model.embed_tokens.weight"]
        x = table_VH[tokens.ids[i]]
        if tokens.patch[i] >= 0:
            x = x + self.linear("single_transformer.model.vis_embed", patches[tokens.patch[i]])
        if tokens.prompt[i] >= 0:
            name = self.vocabulary.encode(f"<Prompt{tokens.prompt[i]}>")[0]
            x = x + self.linear("single_transformer.model.vp_embed", table_VH[name])
        return x

    def normed(self, name: str, x: Vector) -> Vector:
        return x / math.sqrt(x @ x / len(x) + self.config.norm_eps) * self.tensors[f"{name}.weight"]

    def each(self, make: Callable[[str, Vector], Vector], name: str, x_LH: list[Vector], tokens: Tokens) -> list[Vector]:
        """What each token's part of that name makes of it."""
        return [make(self.of(name, tokens, i), x) for i, x in enumerate(x_LH)]

    def block(self, name: str, x_LH: list[Vector], tokens: Tokens) -> list[Vector]:
        normed_LH = self.each(self.normed, f"{name}.input_layernorm", x_LH, tokens)
        mixed_LH = self.attention(f"{name}.self_attn", normed_LH, tokens)
        x_LH = [x + mixed for x, mixed in zip(x_LH, mixed_LH, strict=True)]
        normed_LH = self.each(self.normed, f"{name}.post_attention_layernorm", x_LH, tokens)
        fed_LH = self.each(self.swiglu, f"{name}.mlp", normed_LH, tokens)
        return [x + fed for x, fed in zip(x_LH, fed_LH, strict=True)]

    def swiglu(self, name: str, x: Vector) -> Vector:
        gate, up = self.linear(f"{name}.gate_proj", x), self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", np.array([g / (1 + math.exp(-g)) for g in gate]) * up)

    def attention(self, name: str, x_LH: list[Vector], tokens: Tokens) -> list[Vector]:
        """Query head q looks at key head q // (queries a key)."""
        length, size = len(x_LH), self.config.head_dim
        query, key, value = (
            [x.reshape(-1, size) for x in self.each(self.linear, f"{name}.{part}_proj", x_LH, tokens)] for part in "qkv"
        )
        for i in range(length):
            query[i], key[i] = ([self.turned(head, tokens.positions[i]) for head in heads] for heads in (query[i], key[i]))
        mixed_LH = []
        for i in range(length):
            heads = []
            seen = [j for j in range(length) if tokens.sees(i, j)]
            for q in range(self.config.heads):
                k = q // (self.config.heads // self.config.kv_heads)
                scores = [query[i][q] @ key[j][k] / math.sqrt(size) for j in seen]
                largest = max(scores)
                weights = [math.exp(score - largest) for score in scores]
                heads.append(sum(weight * value[j][k] for weight, j in zip(weights, seen, strict=True)) / sum(weights))
            mixed_LH.append(np.concatenate(heads))
        return self.each(self.linear, f"{name}.o_proj", mixed_LH, tokens)

    def turned(self, x_D: Vector, place: tuple[int, int, int]) -> Vector:
        """Channel i turned together with channel i + D/2: the fast quarter by the row, the slow one by the column."""
        size, half = len(x_D), len(x_D) // 2
        made = np.empty(size)
        for i in range(half):
            angle = place[1 if i < size // 4 else 2] * self.config.rope_theta ** (-2 * i / size)
            cosine, sine = math.cos(angle), math.sin(angle)
            made[i] = x_D[i] * cosine - x_D[i + half] * sine
            made[i + half] = x_D[i + half] * cosine + x_D[i] * sine
        return made

    def query(self, x_H: Vector) -> Vector:
        return self.two_linears("seg_token_projector", x_H)

    def mask(self, query_s: Vector, features_hws: np.ndarray) -> np.ndarray:
        return each_place(features_hws, lambda feature: query_s @ feature)

    def mask_features(self, patches_hwH: np.ndarray) -> np.ndarray:
        x_hwd = patches_hwH
        if "image_feature_pre_projector.0.weight" in self.tensors:
            x_hwd = each_place(x_hwd, lambda x: self.two_linears("image_feature_pre_projector", x))
        doublings = round(math.log2(self.config.patch / self.config.mask_stride))
        for block in range(doublings):
            x_hwd = self.upsampled(f"upsample_blocks.{block}", x_hwd)
        return each_place(x_hwd, lambda x: self.two_linears("image_feature_projector", x))

    def two_linears(self, name: str, x: Vector) -> Vector:
        between = self.linear(f"{name}.0", x)
        return self.linear(f"{name}.2", np.array([max(number, 0.0) for number in between]))

    def upsampled(self, name: str, x_hwd: np.ndarray) -> np.ndarray:
        """Each place becomes four, which GELU, a 3×3 filter a channel, a mix of channels and a norm then follow."""
        h, w, d = x_hwd.shape
        spread_ddkk, bias_d = self.tensors[f"{name}.0.weight"], self.tensors[f"{name}.0.bias"]
        wide_hwd = np.empty((2 * h, 2 * w, d))
        for y, x in np.ndindex(2 * h, 2 * w):
            raised = x_hwd[y // 2, x // 2] @ spread_ddkk[:, :, y % 2, x % 2] + bias_d
            wide_hwd[y, x] = [u * 0.5 * (1 + math.erf(u / math.sqrt(2))) for u in raised]
        made_hwd = np.empty_like(wide_hwd)
        for y, x in np.ndindex(2 * h, 2 * w):
            made_hwd[y, x] = self.channels_normed(f"{name}.3.ln", self.separable(f"{name}.2", wide_hwd, y, x))
        return made_hwd

    def separable(self, name: str, x_hwd: np.ndarray, y: int, x: int) -> Vector:
        weight_dkk, total_d = self.tensors[f"{name}.depthwise.weight"][:, 0], self.tensors[f"{name}.depthwise.bias"]
        for a, b in np.ndindex(3, 3):
            row, column = y + a - 1, x + b - 1
            if 0 <= row < x_hwd.shape[0] and 0 <= column < x_hwd.shape[1]:
                total_d = total_d + weight_dkk[:, a, b] * x_hwd[row, column]
        return self.tensors[f"{name}.pointwise.weight"][:, :, 0, 0] @ total_d + self.tensors[f"{name}.pointwise.bias"]

    def channels_normed(self, name: str, x_d: Vector) -> Vector:
        centred = x_d - sum(x_d) / len(x_d)
        scaled = centred / math.sqrt(centred @ centred / len(x_d) + 1e-6)
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]


def each_place(x_hwd: np.ndarray, made: Callable[[Vector], Any]) -> np.ndarray:
    return np.array([[made(x) for x in row] for row in x_hwd])
