"""What a student is, what it learns from, and how it is moved: sizes, loss weights, optimizer. No torch here."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.config import Compat, Config, execution, later
from schemas.grids import Grid, PatchGrid


class EveConfig(Config):
    """What the layout of EVEv2 has that Qwen's has not: how many `channels` lie between the two layers that read a patch, and
    the `side` of the square whose area every picture is brought to."""

    channels: int = Field(default=1024, ge=1)
    side: int = Field(default=800, ge=1)


class StudentConfig(Config):
    """Sizes of the transformer and of the mask head. The defaults are the 0.5B student of the paper.

    New weights are drawn with a standard deviation of `initializer_range`, token embeddings with `embedding_range` where it is
    given: in a narrow student that starts from nothing, the small range of a wide one drowns which token is which. With
    `recency`, the biases of queries and keys start alike and not at zero, from none in the first head to a deviation of
    `recency` in the last, so that near tokens attract each other before anything is learned. With `compat = "paper"` it does
    as the release does where that moves numbers (docs/paper.md): small prompts get lost when a large picture is shrunk, whoever
    asks gives the order in which prompts cover one another, their embeddings are projected in float32, a dialogue that is too
    long is cut in the middle of a turn, and a [SEG] at which an answer is broken off brings no mask.

    The plain student of the paper has `prompting = "pooled"` (prompts.py) and no upsampler: its `mask_stride` is `patch`.

    With `eve` it is a student in the layout of EVEv2, as the paper's 7B (eve/): other rows, another reader of patches, weights
    of their own for what is seen. `max_side` means nothing then, and compat is not known of it.
    """

    layers: int = Field(default=24, ge=1)
    hidden: int = Field(default=896, ge=1)
    heads: int = Field(default=14, ge=1)
    kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=64, ge=4)
    ffn: int = Field(default=4864, ge=1)
    patch: int = Field(default=16, ge=1)
    max_side: int = Field(default=1024, ge=1)
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    tie_embeddings: bool = False
    prompts: int = Field(default=15, ge=0)
    prompting: Literal["injected", "pooled"] = "injected"
    mask_dim: int = Field(default=512, ge=1)
    mask_width: int | None = Field(default=None, ge=1)
    mask_stride: int = Field(default=4, ge=1)
    initializer_range: float = Field(default=0.02, gt=0)
    embedding_range: float | None = Field(default=None, gt=0)
    recency: float = Field(default=0.0, ge=0)
    max_length: int = Field(default=8192, ge=4)
    compat: Compat = "correct"
    eve: EveConfig | None = later(None)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        sides = self.eve is not None or self.max_side % self.patch == 0
        rules = {
            f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}": self.heads % self.kv_heads == 0,
            f"head_dim = {self.head_dim} must be a multiple of 4, two axes of rotated pairs": self.head_dim % 4 == 0,
            f"max_side = {self.max_side} must be a multiple of patch = {self.patch}": sides,
            f"patch / mask_stride = {self.patch} / {self.mask_stride} must be a power of two": _doublings(self) >= 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @model_validator(mode="after")
    def _eve_fits(self) -> Self:
        rules = {
            f"patch = {self.patch} must be even, EVEv2 reads it in four": self.patch % 2 == 0,
            f'prompting = "{self.prompting}" is no part of EVEv2': self.prompting == "injected",
            f'student.compat = "{self.compat}" is not known of EVEv2': self.compat == "correct",
        }
        broken = [rule for rule, holds in rules.items() if self.eve and not holds]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @property
    def names_pictures(self) -> bool:
        """Whether tokens of the vocabulary stand for what is seen. In EVEv2 what stands there is never read."""
        return self.eve is None

    def fault_of(self, grid: Grid) -> str:
        """Why a teacher's features on this grid cannot be held against it; empty where they can."""
        if self.eve and isinstance(grid, PatchGrid):
            return "a student in the layout of EVEv2 has other patches than the grid of a student says, set grid = 'native'"
        return ""

    @property
    def head_width(self) -> int:
        """Channels between the transformer and the mask embedding."""
        return self.mask_width or min(self.hidden, 1024)

    @property
    def upsample_blocks(self) -> int:
        """Doublings from the patch grid to the mask grid: 2 at stride 4 (the paper), 3 at stride 2 (the release), none where
        the stride is a patch: masks then lie on the patch grid, as in the paper's plain baseline."""
        return _doublings(self)


def _doublings(config: StudentConfig) -> int:
    """log2(patch / mask_stride), or -1 where that is not a whole number."""
    ratio, rest = divmod(config.patch, config.mask_stride)
    return ratio.bit_length() - 1 if rest == 0 and ratio.bit_count() == 1 else -1


class BaseConfig(Config):
    """The published model that a student starts from: its name, and the folder that holds its files."""

    weights: str
    folder: str | None = execution(None)


class TeacherLoss(Config):
    """How one teacher's features are matched: the weight, and the student's tensor that is held against them.

    `space` matters where principal components are stored: the student can be led to the teacher's channels, as the components
    give them, or to the components themselves, which is cheaper. Of a student's distance to the teacher the components do
    not see the part that lies beside them; in their own space that part is a constant.
    """

    reads: Literal["patches", "mask_features"]
    weight: float = Field(default=0.5, ge=0)
    space: Literal["teacher", "components"] = "teacher"


class LossConfig(Config):
    """Weights of the losses; `lm_with_masks` multiplies the text loss of a sample that also has masks.

    With `compat = "paper"` the rules of the release stand that move numbers: one sample with masks scales the text of its
    whole micro-batch (the same at a micro-batch of one), every micro-batch weighs alike, and what is read at points is rounded
    to the precision of the logits (docs/paper.md).
    """

    compat: Compat = "correct"
    lm: float = Field(default=1.0, ge=0)
    lm_with_masks: float = Field(default=0.1, ge=0)
    mask: float = Field(default=2.0, ge=0)
    dice: float = Field(default=0.5, ge=0)
    points: int = Field(default=12544, ge=1)
    oversample: float = Field(default=3.0, ge=1)
    importance: float = Field(default=0.75, ge=0, le=1)
    distillation: dict[str, TeacherLoss] = Field(default_factory=dict)

    @field_validator("distillation")
    @classmethod
    def _names_are_plain(cls, teachers: dict[str, TeacherLoss]) -> dict[str, TeacherLoss]:
        odd = [name for name in teachers if not name.isidentifier()]
        if odd:
            raise ValueError(f"teacher names become parts of checkpoint keys, use letters, digits and _: {odd}")
        return teachers


class OptimConfig(Config):
    """AdamW, a linear warm-up over the share `warmup` of the run, then a cosine to zero."""

    learning_rate: float = Field(default=4e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    start_factor: float = Field(default=1e-5, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)

    @field_validator("betas")
    @classmethod
    def _betas_decay(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {list(betas)}")
        return betas
