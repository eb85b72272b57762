"""Visual prompts: a patch inside the k-th marked region carries the embedding of the token `<Promptk>`.

The text mentions a region by the same token, so word and region share one learned vector.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def prompt_vectors(prompt_index_R: Tensor, embeddings_KH: Tensor, projection_HH: Tensor) -> Tensor:
    """(R, H): Wvp · E[<Prompt_k>] where the index is k, and zero where it is negative.

    The table is projected before it is looked up: K + 1 products instead of one for every token. The zero row has the
    dtype of the parameters, so nothing is promoted.
    """
    table_KH = F.pad(F.linear(embeddings_KH, projection_HH), (0, 0, 0, 1))
    nothing = len(embeddings_KH)
    return F.embedding(torch.where(prompt_index_R < 0, nothing, prompt_index_R), table_KH)
