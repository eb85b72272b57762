"""Greedy answers, several dialogues at a time, and a mask for every [SEG] in them.

A prompt is read once as a whole, with the picture seeing itself (the same states as in training); from then on each new
token sees the keys and values kept from before. Prompts are padded on the right, so a row's new tokens lie behind its
padding, which they do not see; their positions go on from the row's own last one. A mask's query is the state at its
[SEG] itself, which is why every token is read, also the last.

Shapes: B rows, L prompt tokens, T tokens so far, H hidden, n masks, h×w mask grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from student.layers import KeyValues
from student.model import PixelSail, mask_logits
from student.sequence import FIRST_PATCH, Batch, Example, collate
from student.vocabulary import Vocabulary


@dataclass(frozen=True)
class Generated:
    """What the student answered: `text` with its special tokens but without the final stop, and the masks' logits."""

    text: str
    token_ids: list[int]
    mask_logits_nhw: Tensor

    def masks(self, height: int, width: int) -> np.ndarray:
        """(n, height, width) bool: the logits resized to the picture, true where a pixel is more likely in than out."""
        if not len(self.mask_logits_nhw):
            return np.zeros((0, height, width), bool)
        logits = F.interpolate(self.mask_logits_nhw[None], (height, width), mode="bilinear", align_corners=False)[0]
        return (logits.sigmoid() > 0.5).cpu().numpy()


@torch.inference_mode()
def generate(
    model: PixelSail, vocabulary: Vocabulary, examples: Sequence[Example], max_new_tokens: int = 512, batch: int = 32
) -> list[Generated]:
    """An answer for each example, in their order. The last answer of each is open (`encode` with None), or begun by a
    prefix, whose [SEG] count as well. Dialogues of like length go together, `batch` at a time.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens_L))
    found: dict[int, Generated] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        made = _together(model, vocabulary, [examples[i] for i in chosen], max_new_tokens)
        found.update(zip(chosen, made, strict=True))
    return [found[i] for i in range(len(examples))]


def _together(model: PixelSail, vocabulary: Vocabulary, examples: Sequence[Example], max_new_tokens: int) -> list[Generated]:
    device = next(model.parameters()).device
    batch = collate(examples, vocabulary.end_of_text).to(device)
    states_BLH, tokens_BT, new_states_BTH = _decode(model, vocabulary, batch, max_new_tokens)
    answers = [_until_stop(tokens, vocabulary) for tokens in tokens_BT.tolist()]
    asked = [
        torch.cat((states_BLH[b, _prefix_segs(example, vocabulary)], new_states_BTH[b, _places(answers[b], vocabulary.seg)]))
        for b, example in enumerate(examples)
    ]
    shown = [_patches(states_BLH[b], example) if len(asked[b]) else None for b, example in enumerate(examples)]
    features = model.mask_features(shown)
    return [
        Generated(vocabulary.decode(answer).strip(), answer, _masks(model, states_nH, features_sHW))
        for answer, states_nH, features_sHW in zip(answers, asked, features, strict=True)
    ]


def _decode(model: PixelSail, vocabulary: Vocabulary, batch: Batch, max_new_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt states BLH, new tokens BT, their states BTH) until every row has stopped; what follows a stop is noise.

    The states are one fewer than the tokens where all rows have stopped: nobody asks for the state of a stop.
    """
    stops = torch.tensor([vocabulary.end_of_text, vocabulary.turn_end], device=batch.tokens_BL.device)
    past, rows = KeyValues(), torch.arange(len(batch.sample_ids), device=batch.tokens_BL.device)
    prompt_BLH = model.states(batch, past)
    state_BH = prompt_BLH[rows, batch.lengths_B - 1]
    position_B = batch.positions_3BL.amax(dim=(0, 2))
    seen_BT = torch.arange(prompt_BLH.shape[1], device=rows.device) < batch.lengths_B[:, None]
    stopped_B = torch.zeros_like(rows, dtype=torch.bool)
    tokens: list[Tensor] = []
    states: list[Tensor] = [prompt_BLH[:, :0]]
    for _ in range(max_new_tokens):
        token_B = model.logits(state_BH).argmax(dim=-1)
        tokens.append(token_B)
        stopped_B |= torch.isin(token_B, stops)
        if stopped_B.all():
            break
        position_B, seen_BT = position_B + 1, F.pad(seen_BT, (0, 1), value=True)
        state_BH = model.next_states(token_B, position_B, past, seen_BT)
        states.append(state_BH[:, None])
    return prompt_BLH, torch.stack(tokens, dim=1), torch.cat(states, dim=1)


def _until_stop(tokens: list[int], vocabulary: Vocabulary) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in (vocabulary.end_of_text, vocabulary.turn_end)]
    return tokens[: ends[0]] if ends else tokens


def _places(tokens: Sequence[int], wanted: int) -> list[int]:
    return [place for place, token in enumerate(tokens) if token == wanted]


def _prefix_segs(example: Example, vocabulary: Vocabulary) -> list[int]:
    """Where [SEG] stands in the begun answer: behind the end of the last answer that is given whole, if there is one."""
    tokens = example.tokens_L.tolist()
    start = max(_places(tokens, vocabulary.end_of_text), default=-1)
    return [place for place in _places(tokens, vocabulary.seg) if place > start]


def _patches(states_LH: Tensor, example: Example) -> Tensor | None:
    """(h, w, H) states of the picture; None where there is none."""
    if example.grid is None:
        return None
    h, w = example.grid
    return states_LH[FIRST_PATCH : FIRST_PATCH + h * w].unflatten(0, (h, w))


def _masks(model: PixelSail, states_nH: Tensor, features_sHW: Tensor | None) -> Tensor:
    """(n, h, w) logits; none without a picture."""
    if features_sHW is None:
        return torch.zeros(0, 1, 1)
    return mask_logits(model.queries(states_nH), features_sHW).float()
