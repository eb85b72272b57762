"""Pixel-SAIL: one decoder that reads pixels and text alike, answers in text, and points by [SEG].

What is unusual here:
- There is no vision encoder. A 16×16 patch is one linear layer away from being a token.
- A picture stands first: in its block attention is bidirectional, elsewhere causal (sight.py); positions have two axes
  (layers.py).
- A batch is one row: its samples stand one behind the other, nothing is padded, and none sees another.
- A marked region is a vector added to its patches, not a crop and not a coordinate in the text; or, in the paper's plain
  baseline, the mean of its patches added to the word that names it (prompts.py).
- The last states of the patches, upsampled, are the picture's mask features; the state *at* each [SEG] is a query; a mask is
  their inner product, without bias or scale.
- Attribute names are those of the reference checkpoint, so its tensors load by name.

A student in the layout of EVEv2 has another decoder (eve/decoder.py): patches of 32×32 go through two layers, the picture
stands in the first question, and everything sees what comes before it and no more. All around it is the same.

Shapes: R tokens and N patches of all samples, H hidden, V vocabulary, S supervised tokens, M queries; B samples that go on by
one token each; of one sample: h×w patch grid, h'×w' mask grid, s mask embedding, n masks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import ConfigError
from student.config import StudentConfig
from student.eve.decoder import EveDecoder
from student.layers import Block, RMSNorm, looked_up, rotary
from student.prompts import prompting
from student.sequence import IGNORED, Batch, Grid
from student.sight import KeyValues, Next, Sights, Whole
from student.upsample import two_layers, upsample_blocks
from student.vocabulary import Vocabulary


@dataclass(frozen=True)
class Output:
    """What one forward pass gives.

    hidden_RH: last states, after the final norm. logits_SV: next-token logits where the next token is supervised, in the
    order of the batch. Per sample, None where there is nothing: patches (h, w, H), mask_features (s, h', w'), mask_logits
    (n, h', w'). anchor: a zero that depends on every parameter the batch left idle, so that data-parallel training sees all.
    """

    hidden_RH: Tensor
    logits_SV: Tensor
    patches: list[Tensor | None]
    mask_features: list[Tensor | None]
    mask_logits: list[Tensor | None]
    anchor: Tensor


class Decoder(nn.Module):
    """Embeddings of text, pixels and prompts, the blocks, and the final norm."""

    def __init__(self, config: StudentConfig, rows: int):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(rows, config.hidden)
        self.vis_embed = nn.Linear(3 * config.patch**2, config.hidden, bias=False)
        self.vp_embed = prompting(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)

    def states(self, batch: Batch, ids_K: Tensor, past: KeyValues | None) -> Tensor:
        """(R, H) last states of whole sequences. ids_K: the tokens <Prompt0> …"""
        pixels_RH = self.pixels(batch)
        x_RH = self.embed_tokens(batch.tokens_R) + pixels_RH
        if self.vp_embed is not None:
            x_RH = x_RH + self.vp_embed.vectors(batch, pixels_RH, ids_K, self.embed_tokens)
        return self._decoded(x_RH, batch.positions_3R, Whole(batch.spans, x_RH.device, past))

    def next_states(self, tokens_B: Tensor, positions_B: Tensor, past: KeyValues) -> Tensor:
        """(B, H) states of one more text token of each sample."""
        return self._decoded(self.embed_tokens(tokens_B), positions_B.expand(3, -1), Next(past))

    def pixels(self, batch: Batch) -> Tensor:
        """(R, H): each patch's embedding at its place, zero elsewhere."""
        weight = self.vis_embed.weight
        return looked_up(F.linear(batch.patches_NP.to(weight.dtype), weight), batch.patch_index_R)

    def _decoded(self, x_RH: Tensor, positions_3R: Tensor, sights: Sights) -> Tensor:
        turn = rotary(positions_3R, self.config.head_dim, self.config.rope_theta)
        for layer, block in enumerate(self.layers):
            x_RH = block(x_RH, turn, partial(sights, layer))
        return self.norm(x_RH)


class Transformer(nn.Module):
    """The decoder and its language head; with tied embeddings the head has no weight of its own."""

    def __init__(self, config: StudentConfig, rows: int):
        super().__init__()
        self.model = EveDecoder(config, rows) if config.eve else Decoder(config, rows)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden, rows, bias=False)


class PixelSail(nn.Module):
    """The student; sizes from `config`, rows and the ids of [SEG] and the prompts from `vocabulary`.

    Weights are drawn from `generator`; with None they are left for a checkpoint to fill.
    """

    def __init__(self, config: StudentConfig, vocabulary: Vocabulary, generator: torch.Generator | None):
        super().__init__()
        if len(vocabulary.prompt_ids) != config.prompts:
            what = f"a vocabulary of {len(vocabulary.prompt_ids)} prompts for a student of {config.prompts}"
            raise ConfigError(what, "prompts", "Make both with one number.")
        self.config, self.seg = config, vocabulary.seg
        wide, d, s = config.hidden, config.head_width, config.mask_dim
        self.register_buffer("prompt_ids", torch.tensor(vocabulary.prompt_ids, dtype=torch.long), persistent=False)
        self.single_transformer = Transformer(config, len(vocabulary))
        self.image_feature_pre_projector = two_layers(wide, wide, d) if wide != d else nn.Identity()
        self.seg_token_projector = two_layers(wide, d, s)
        self.upsample_blocks = upsample_blocks(config)
        self.image_feature_projector = two_layers(d, d, s)
        if generator is not None:
            self._initialise(generator)

    def forward(self, batch: Batch, every_picture: bool = True) -> Output:
        """The `Output` for a batch.

        every_picture: make mask features of every picture, which a teacher may read; else only of samples with masks.
        """
        hidden_RH = self.states(batch)
        patches = patch_states(hidden_RH, batch)
        counts = [len(masks) for masks in batch.masks]
        wanted = [states if every_picture or count else None for states, count in zip(patches, counts, strict=True)]
        features = self.mask_features(wanted)
        asked_MH = hidden_RH.index_select(0, _rows(batch.labels_R == self.seg))
        queries = self.queries(asked_MH).split(counts)
        return Output(
            hidden_RH=hidden_RH,
            logits_SV=self.logits(hidden_RH.index_select(0, _rows(batch.next_labels_R != IGNORED))),
            patches=patches,
            mask_features=features,
            mask_logits=[mask_logits(*pair) if len(pair[0]) else None for pair in zip(queries, features, strict=True)],
            anchor=hidden_RH.new_zeros(()) if len(asked_MH) else self._idle_head(),
        )

    def states(self, batch: Batch, past: KeyValues | None = None) -> Tensor:
        """(R, H) last states of whole sequences; with `past`, their keys and values are kept for `next_states`."""
        return self.single_transformer.model.states(batch, self.prompt_ids, past)

    def next_states(self, tokens_B: Tensor, positions_B: Tensor, past: KeyValues) -> Tensor:
        """(B, H) states of one more text token of each sample, at a position that is the same on all axes."""
        return self.single_transformer.model.next_states(tokens_B, positions_B, past)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """(…, V) next-token logits of last states."""
        head = self.single_transformer.model.embed_tokens if self.config.tie_embeddings else self.single_transformer.lm_head
        return F.linear(hidden_RH, head.weight)

    def queries(self, hidden_MH: Tensor) -> Tensor:
        """(M, s) mask queries of the states at [SEG] tokens."""
        return self.seg_token_projector(hidden_MH)

    def mask_features(self, patches: Sequence[Tensor | None]) -> list[Tensor | None]:
        """(s, h', w') for each (h, w, H) grid of patch states; grids of one size go through together."""
        found: list[Tensor | None] = [None] * len(patches)
        for group in _by_size(patches):
            x_GhwH = self.image_feature_pre_projector(torch.stack([patches[i] for i in group]))
            x_GdHW = x_GhwH.permute(0, 3, 1, 2)
            for block in self.upsample_blocks:
                x_GdHW = block(x_GdHW)
            features_GHWs = self.image_feature_projector(x_GdHW.permute(0, 2, 3, 1))
            for i, features_sHW in zip(group, features_GHWs.permute(0, 3, 1, 2).unbind(), strict=True):
                found[i] = features_sHW
        return found

    def _idle_head(self) -> Tensor:
        """Zero times the mask head's parameters."""
        head = (
            self.image_feature_pre_projector,
            self.seg_token_projector,
            self.upsample_blocks,
            self.image_feature_projector,
        )
        return sum(parameter.sum() for part in head for parameter in part.parameters()) * 0.0

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """The transformer from a normal, the head as torch draws its layers, every upsample block alike."""
        for name, parameter in self.single_transformer.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif not name.endswith(("norm.weight", "layernorm.weight")):
                embeds = name.endswith("embed_tokens.weight") and self.config.embedding_range
                nn.init.normal_(parameter, std=embeds or self.config.initializer_range, generator=generator)
        if self.config.recency:
            self._favour_near_tokens(generator)
        head = (self.image_feature_pre_projector, self.seg_token_projector, self.image_feature_projector)
        for module in nn.ModuleList([*head, *self.upsample_blocks[:1]]).modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        for block in self.upsample_blocks[1:]:
            block.load_state_dict(self.upsample_blocks[0].state_dict())

    def _favour_near_tokens(self, generator: torch.Generator) -> None:
        """Equal query and key biases score highest where the rotary turn between two tokens is small."""
        for block in self.single_transformer.model.layers:
            scale_K = torch.linspace(0, self.config.recency, self.config.kv_heads)
            bias_KD = torch.randn(self.config.kv_heads, self.config.head_dim, generator=generator) * scale_K[:, None]
            bias_QD = bias_KD.repeat_interleave(self.config.heads // self.config.kv_heads, dim=0)
            for query, key in block.self_attn.queries_and_keys():
                query.bias.copy_(bias_QD.flatten())
                key.bias.copy_(bias_KD.flatten())


def mask_logits(queries_ns: Tensor, features_sHW: Tensor) -> Tensor:
    """(n, h', w') logits: the inner product of each query with the features at each place."""
    return torch.einsum("ns,shw->nhw", queries_ns, features_sHW)


def _rows(chosen_R: Tensor) -> Tensor:
    """Where it is True. Rows are picked by number: by a mask, the way back is several times as slow."""
    return chosen_R.nonzero()[:, 0]


def patch_states(hidden_RH: Tensor, batch: Batch) -> list[Tensor | None]:
    """(h, w, H) states of each sample's patches. One gather: slicing sample by sample costs a zero tensor each backward."""
    sizes: list[Grid] = [grid or (0, 0) for grid in batch.grids]
    pieces = hidden_RH.index_select(0, _rows(batch.patch_index_R >= 0)).split([h * w for h, w in sizes])
    return [piece.unflatten(0, size) if len(piece) else None for piece, size in zip(pieces, sizes, strict=True)]


def _by_size(tensors: Sequence[Tensor | None]) -> list[list[int]]:
    """Indices of the tensors, those of one shape together."""
    groups: dict[torch.Size, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor is not None:
            groups.setdefault(tensor.shape, []).append(i)
    return list(groups.values())
