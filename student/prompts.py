"""Visual prompts: how the student learns which region `<Promptk>` speaks of. A part for each way, chosen by its name.

    injected   each patch of the region carries the projected embedding of `<Promptk>`: word and region share one learned vector
    pooled     the paper's baseline: the word carries the mean of the region's patch embeddings, the patches carry nothing

Pooled are the words of questions alone: an answer's are written one by one, before anybody knows them for a region's.

Shapes: R tokens of all samples, H hidden, K prompts.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.config import Compat
from student.config import StudentConfig
from student.layers import looked_up
from student.sequence import IGNORED, Batch


class Prompting(Protocol):
    def vectors(self, batch: Batch, pixels_RH: Tensor, ids_K: Tensor, embed: nn.Embedding) -> Tensor:
        """(R, H): what is added to the embeddings of the batch.

        pixels_RH: the embedding of each patch at its place. ids_K: the tokens <Prompt0> …; embed: the table of all tokens.
        """
        ...


class Injected(nn.Linear):
    """Wvp, the projection of the prompts' embeddings; it has the name and layout of the reference checkpoint.

    With `compat = "paper"` it is taken in float32 whatever everything else is in: so do the zero rows of the release.
    """

    def __init__(self, hidden: int, compat: Compat):
        super().__init__(hidden, hidden, bias=False)
        self.compat = compat

    def vectors(self, batch: Batch, pixels_RH: Tensor, ids_K: Tensor, embed: nn.Embedding) -> Tensor:
        embeddings_KH = embed(ids_K)
        if self.compat == "correct":
            return prompt_vectors(batch.prompt_index_R, embeddings_KH, self.weight)
        with torch.autocast(embeddings_KH.device.type, enabled=False):
            vectors_RH = prompt_vectors(batch.prompt_index_R, embeddings_KH.float(), self.weight.float())
        return vectors_RH.to(embeddings_KH.dtype)


class Pooled(nn.Module):
    """The mean of a region's patches where a question mentions it; nothing to learn, and zero for a prompt without a region."""

    def vectors(self, batch: Batch, pixels_RH: Tensor, ids_K: Tensor, embed: nn.Embedding) -> Tensor:
        asked_R = torch.where(batch.labels_R == IGNORED, _number_of(batch.tokens_R, ids_K), -1)
        marks_R, asks_R = (_rows(number_R, batch, len(ids_K)) for number_R in (batch.prompt_index_R, asked_R))
        last = len(batch.spans) * len(ids_K)
        sums = pixels_RH.new_zeros(last + 1, pixels_RH.shape[1], dtype=torch.float32).index_add(0, marks_R, pixels_RH.float())
        means = sums[:last] / torch.bincount(marks_R, minlength=last + 1)[:last, None].clamp(min=1)
        return F.embedding(asks_R, F.pad(means, (0, 0, 0, 1)).to(pixels_RH.dtype))


def prompting(config: StudentConfig) -> Injected | Pooled | None:
    """The part that `config` names; a student without prompts has none."""
    if config.prompts == 0:
        return None
    match config.prompting:
        case "injected":
            return Injected(config.hidden, config.compat)
        case "pooled":
            return Pooled()


def prompt_vectors(prompt_index_R: Tensor, embeddings_KH: Tensor, projection_HH: Tensor) -> Tensor:
    """(R, H): Wvp · E[<Prompt_k>] where the index is k, and zero where it is negative.

    The table is projected before it is looked up: K + 1 products instead of one for every token. The zero row has the
    dtype of the parameters, so nothing is promoted.
    """
    return looked_up(F.linear(embeddings_KH, projection_HH), prompt_index_R)


def _number_of(tokens_R: Tensor, ids_K: Tensor) -> Tensor:
    """k where the token is <Promptk>, else -1."""
    same_RK = tokens_R[:, None] == ids_K
    return torch.where(same_RK.any(dim=1), same_RK.int().argmax(dim=1), -1)


def _rows(number_R: Tensor, batch: Batch, prompts: int) -> Tensor:
    """The row of prompt k of sample b, b · K + k; the last row where the number is negative."""
    samples = [torch.full((span.length,), b) for b, span in enumerate(batch.spans)]
    sample_R = torch.cat(samples).to(number_R.device)
    return torch.where(number_R < 0, len(batch.spans) * prompts, sample_R * prompts + number_R)
