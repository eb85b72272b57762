"""Answers, the likeliest or drawn, several dialogues at a time, and a mask for every [SEG] in them.

A prompt is read once as a whole, to the same states as in training; from then on each new token sees the keys and values
kept from before. Their positions go on from the prompt's own last one, which is its largest also where a picture ends it. A
mask's query is the state at its [SEG] itself, which is why every token is read, also the last.

Shapes: B samples, G of them that still answer, R tokens of all prompts, V vocabulary, H hidden, n masks, h×w mask grid.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.chance import generator
from student.model import PixelSail, mask_logits, patch_states
from student.sequence import Example, collate
from student.sight import KeyValues
from student.vocabulary import Vocabulary

Pick = Callable[[Tensor, Sequence[int]], Tensor]  # logits GV of the samples that go on, and which they are -> their tokens G


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
    model: PixelSail,
    vocabulary: Vocabulary,
    examples: Sequence[Example],
    max_new_tokens: int = 512,
    batch: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generated]:
    """An answer for each example, in their order. The last answer of each is open (`encode` with None), or begun by a
    prefix, whose [SEG] count as well. Dialogues of like length go together, `batch` at a time.

    temperature: 0 takes the likeliest token; else tokens are drawn, by numbers that follow from the seed, the example's
    `sample_id` and, where several have the same, which of them it is: not from who else is in its batch.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens_L))
    draws = _draws(examples, seed) if temperature else []
    found: dict[int, Generated] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        pick = _Drawn(temperature, [draws[i] for i in chosen]) if temperature else _likeliest
        made = _together(model, vocabulary, [examples[i] for i in chosen], max_new_tokens, pick)
        found.update(zip(chosen, made, strict=True))
    return [found[i] for i in range(len(examples))]


def _likeliest(logits_GV: Tensor, going: Sequence[int]) -> Tensor:
    return logits_GV.argmax(dim=-1)


@dataclass(frozen=True)
class _Drawn:
    """Tokens as likely as the student has them at a temperature. Each sample has its own numbers and takes one a token, so a
    change of its logits by rounding changes its token as good as never."""

    temperature: float
    generators: Sequence[np.random.Generator]

    def __call__(self, logits_GV: Tensor, going: Sequence[int]) -> Tensor:
        up_to_GV = (logits_GV.double() / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        drawn = [[self.generators[sample].random()] for sample in going]
        drawn_G1 = torch.tensor(drawn, dtype=torch.float64, device=logits_GV.device)
        return torch.searchsorted(up_to_GV, drawn_G1 * up_to_GV[:, -1:])[:, 0]


def _draws(examples: Sequence[Example], seed: int) -> list[np.random.Generator]:
    """The source of each example's numbers."""
    earlier: Counter[str] = Counter()
    draws = []
    for example in examples:
        draws.append(generator(seed, example.sample_id, earlier[example.sample_id]))
        earlier[example.sample_id] += 1
    return draws


@dataclass
class _Answer:
    """One answer as it comes: the states at its [SEG], those of a begun answer first, its tokens, and whether it has ended."""

    seg_states: list[Tensor]
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False

    def take(self, token: int, vocabulary: Vocabulary) -> None:
        self.stopped |= token in (vocabulary.end_of_text, vocabulary.turn_end)
        if not self.stopped:
            self.tokens.append(token)

    def see(self, state_H: Tensor, vocabulary: Vocabulary) -> None:
        """The state at the token that was taken last."""
        if not self.stopped and self.tokens[-1] == vocabulary.seg:
            self.seg_states.append(state_H)

    def forget_unread(self, vocabulary: Vocabulary) -> None:
        """In the release the token at which an answer is broken off is never read, so a [SEG] there brings no mask."""
        if not self.stopped and self.tokens[-1:] == [vocabulary.seg]:
            self.seg_states.pop()


def _together(
    model: PixelSail, vocabulary: Vocabulary, examples: Sequence[Example], max_new_tokens: int, pick: Pick
) -> list[Generated]:
    batch = collate(examples).to(next(model.parameters()).device)
    past = KeyValues()
    prompt_RH = model.states(batch, past)
    begun = [_prefix_segs(example, vocabulary) for example in examples]
    answers = [_Answer([prompt_RH[span.start + at] for at in segs]) for span, segs in zip(batch.spans, begun, strict=True)]
    last_B = torch.tensor([span.start + span.length - 1 for span in batch.spans], device=prompt_RH.device)
    position_B = batch.positions_3R[:, last_B].amax(dim=0)
    going = _Going(list(range(len(answers))), prompt_RH[last_B], position_B, past)
    for _ in range(max_new_tokens):
        if not going.on(model, vocabulary, answers, pick):
            break
    if model.config.compat == "paper":
        for answer in answers:
            answer.forget_unread(vocabulary)
    patches = patch_states(prompt_RH, batch)
    wanted = [each if answer.seg_states else None for each, answer in zip(patches, answers, strict=True)]
    return [
        Generated(vocabulary.decode(answer.tokens).strip(), answer.tokens, _masks(model, answer.seg_states, features_sHW))
        for answer, features_sHW in zip(answers, model.mask_features(wanted), strict=True)
    ]


@dataclass
class _Going:
    """The samples whose answers go on: which they are, the state and the position of the last token of each, and what all of
    them have said before. One that has stopped is read on as noise until half have, and then they leave: to move the keys
    and values of the others costs more than a few tokens."""

    rows: list[int]
    state_GH: Tensor
    position_G: Tensor
    past: KeyValues

    def on(self, model: PixelSail, vocabulary: Vocabulary, answers: Sequence[_Answer], pick: Pick) -> bool:
        """One more token of each; whether an answer is still open."""
        token_G = pick(model.logits(self.state_GH), self.rows)
        for row, token in zip(self.rows, token_G.tolist(), strict=True):
            answers[row].take(token, vocabulary)
        open_ = [place for place, row in enumerate(self.rows) if not answers[row].stopped]
        if 0 < 2 * len(open_) <= len(self.rows):
            token_G = self._without_the_stopped(open_, token_G)
        if open_:
            self.position_G = self.position_G + 1
            self.state_GH = model.next_states(token_G, self.position_G, self.past)
            for row, state_H in zip(self.rows, self.state_GH, strict=True):
                answers[row].see(state_H, vocabulary)
        return bool(open_)

    def _without_the_stopped(self, places: list[int], token_G: Tensor) -> Tensor:
        self.rows = [self.rows[place] for place in places]
        self.position_G = self.position_G[places]
        self.past.keep(places)
        return token_G[places]


def _prefix_segs(example: Example, vocabulary: Vocabulary) -> list[int]:
    """Where [SEG] stands in the begun answer: behind the end of the last question."""
    tokens = example.tokens_L.tolist()
    start = max(place for place, token in enumerate(tokens) if token == vocabulary.turn_end)
    return [place for place, token in enumerate(tokens) if token == vocabulary.seg and place > start]


def _masks(model: PixelSail, seg_states: Sequence[Tensor], features_sHW: Tensor | None) -> Tensor:
    """(n, h, w) logits; none without a picture."""
    if features_sHW is None:
        return torch.zeros(0, 1, 1)
    return mask_logits(model.queries(torch.stack(list(seg_states))), features_sHW).float()
