"""Greedy answers, several dialogues at a time, and a mask for every [SEG] in them.

A prompt is read once as a whole, with the picture seeing itself (the same states as in training); from then on each new
token sees the keys and values kept from before. Their positions go on from the prompt's own last one, which is its largest
also where a picture ends it. A mask's query is the state at its [SEG] itself, which is why every token is read, also the last.

Shapes: B samples, R tokens of all prompts, T new tokens, H hidden, n masks, h×w mask grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from student.model import PixelSail, mask_logits, patch_states
from student.sequence import Batch, Example, collate
from student.sight import KeyValues
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
    batch = collate(examples).to(next(model.parameters()).device)
    prompt_RH, tokens_BT, new_states_BTH = _decode(model, vocabulary, batch, max_new_tokens)
    answers = [_until_stop(tokens, vocabulary) for tokens in tokens_BT.tolist()]
    prompts = [prompt_RH[span.rows] for span in batch.spans]
    asked = [
        torch.cat((prompts[b][_prefix_segs(example, vocabulary)], new_states_BTH[b, _places(answers[b], vocabulary.seg)]))
        for b, example in enumerate(examples)
    ]
    patches = patch_states(prompt_RH, batch)
    features = model.mask_features([each if len(states) else None for each, states in zip(patches, asked, strict=True)])
    return [
        Generated(vocabulary.decode(answer).strip(), answer, _masks(model, states_nH, features_sHW))
        for answer, states_nH, features_sHW in zip(answers, asked, features, strict=True)
    ]


def _decode(model: PixelSail, vocabulary: Vocabulary, batch: Batch, max_new_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt states RH, new tokens BT, their states BTH) until every sample has stopped; what follows a stop is noise.

    The states are one fewer than the tokens where all samples have stopped: nobody asks for the state of a stop.
    """
    device = batch.tokens_R.device
    stops = torch.tensor([vocabulary.end_of_text, vocabulary.turn_end], device=device)
    past = KeyValues()
    prompt_RH = model.states(batch, past)
    last_B = torch.tensor([span.start + span.length - 1 for span in batch.spans], device=device)
    state_BH, position_B = prompt_RH[last_B], batch.positions_3R[:, last_B].amax(dim=0)
    stopped_B = torch.zeros_like(last_B, dtype=torch.bool)
    tokens: list[Tensor] = []
    states: list[Tensor] = [prompt_RH.new_zeros(len(last_B), 0, prompt_RH.shape[1])]
    for _ in range(max_new_tokens):
        token_B = model.logits(state_BH).argmax(dim=-1)
        tokens.append(token_B)
        stopped_B |= torch.isin(token_B, stops)
        if stopped_B.all():
            break
        position_B = position_B + 1
        state_BH = model.next_states(token_B, position_B, past)
        states.append(state_BH[:, None])
    return prompt_RH, torch.stack(tokens, dim=1), torch.cat(states, dim=1)


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


def _masks(model: PixelSail, states_nH: Tensor, features_sHW: Tensor | None) -> Tensor:
    """(n, h, w) logits; none without a picture."""
    if features_sHW is None:
        return torch.zeros(0, 1, 1)
    return mask_logits(model.queries(states_nH), features_sHW).float()
