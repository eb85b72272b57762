"""Mask2Former through transformers: the pixel decoder's mask features as a teacher, panoptic regions as a segmenter.

The input follows the processor of the reference: resized by Pillow (bilinear, bytes in, bytes out), then to 0..1 and
normalised. The regions follow the original panoptic inference, which keeps of a region only where its own mask is at
least one half; transformers' own post-processing goes through 384x384 and does not.

    Q queries   H, W the image   h, w stride 4 of the input
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Mask2FormerConfig as Architecture
from transformers import Mask2FormerModel, Mask2FormerPreTrainedModel, SwinConfig

from schemas.errors import ConfigError
from schemas.features import FeatureSpec
from teachers import pixels, weights
from teachers.base import Proposal
from teachers.config import Mask2FormerConfig, Mask2FormerSizes

GAIN = 1.41
MULTIPLE = 32
MASK_THRESHOLD = 0.5
# Published with the network but not part of it here, and the reverse: a norm that the backbone makes and never reads.
SPARE = r"^criterion\.|relative_position_index$"
UNUSED = r"\.swin\.layernorm\."


class PanopticNetwork(Mask2FormerPreTrainedModel):
    """`Mask2FormerForUniversalSegmentation` without its training loss, which would need scipy; same tensor names."""

    def __init__(self, config: Architecture):
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, labels + 1), the last of them "nothing", and mask logits (B, Q, h, w)."""
        answer = self.model(pixel_values, output_hidden_states=True)
        queries_QBC = answer.transformer_decoder_intermediate_states[-1]
        return self.class_predictor(queries_QBC.transpose(0, 1)), answer.masks_queries_logits[-1]


class Mask2FormerTeacher:
    """The mask features: backbone and pixel decoder only, the query decoder is never run.

    Images go through the network one by one: kernels are chosen by batch size, so a batch could change stored bits.
    """

    def __init__(self, config: Mask2FormerConfig, spec: FeatureSpec, device: str = "cpu"):
        self._config, self._grid, self._device = config, (spec.height, spec.width), device
        self._pixel_level = load(config).model.pixel_level_module.to(device)

    def features(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return [self._feature(image) for image in images]

    @torch.inference_mode()
    def _feature(self, image: np.ndarray) -> np.ndarray:
        with pixels.precision(self._config.dtype, self._device):
            answer = self._pixel_level(preprocess(image, self._config).to(self._device))
        return pixels.to_grid(answer.decoder_last_hidden_state, self._grid)


class Mask2FormerSegmenter:
    """Panoptic regions, which do not overlap: each thing on its own, all stuff of a category together."""

    def __init__(self, config: Mask2FormerConfig, device: str = "cpu"):
        self._config, self._device = config, device
        self._model = load(config).to(device)

    @torch.inference_mode()
    def segments(self, image: np.ndarray) -> list[Proposal]:
        with pixels.precision(self._config.dtype, self._device):
            classes, masks = self._model(preprocess(image, self._config).to(self._device))
        scores_Q, labels_Q = classes[0].float().softmax(-1).max(-1)
        kept = (labels_Q < classes.shape[-1] - 1) & (scores_Q >= self._config.min_score)
        logits_QHW = pixels.resize(masks[:, kept].float(), (image.shape[0], image.shape[1]))[0]
        regions = panoptic(logits_QHW.sigmoid(), scores_Q[kept], labels_Q[kept], config=self._config)
        names = self._model.config.id2label
        found = [
            Proposal(mask.cpu().numpy(), score, names[label], label < self._config.things) for label, score, mask in regions
        ]
        return sorted(found, key=lambda proposal: -proposal.score)


def panoptic(
    masks_QHW: Tensor, scores_Q: Tensor, labels_Q: Tensor, config: Mask2FormerConfig
) -> list[tuple[int, float, Tensor]]:
    """(label, score, mask HW) of each region, disjoint, in order of query.

    Every pixel goes to the query with the largest score x mask; a query that keeps less than `min_overlap` of its own mask
    is dropped and leaves its pixels empty. Stuff of one label is one region with the best of their scores.
    """
    if not len(scores_Q):
        return []
    owner_HW = (scores_Q[:, None, None] * masks_QHW).argmax(0)
    regions: list[tuple[int, float, Tensor]] = []
    stuff: dict[int, int] = {}
    for query, (score, label) in enumerate(zip(scores_Q.tolist(), labels_Q.tolist(), strict=True)):
        owned_HW, own_HW = owner_HW == query, masks_QHW[query] >= MASK_THRESHOLD
        mask_HW = owned_HW & own_HW
        if not mask_HW.any() or owned_HW.sum() < config.min_overlap * own_HW.sum():
            continue
        if label in stuff:
            _, best, merged_HW = regions[stuff[label]]
            regions[stuff[label]] = (label, max(best, score), merged_HW | mask_HW)
            continue
        if label >= config.things:
            stuff[label] = len(regions)
        regions.append((label, score, mask_HW))
    return regions


def preprocess(image: np.ndarray, config: Mask2FormerConfig) -> Tensor:
    """(1, 3, height, width) resized and normalised."""
    pixels.require_rgb(image)
    height, width = input_size(image.shape[0], image.shape[1], config)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return pixels.normalise(pixels.to_unit(np.asarray(resized)))


def input_size(height: int, width: int, config: Mask2FormerConfig) -> tuple[int, int]:
    """(height, width) that an image of this size is resized to, both multiples of 32; 480 x 640 gives 800 x 1088."""
    short, long = min(height, width), max(height, width)
    edge: float = config.shortest_edge
    if long / short * edge > config.longest_edge:
        edge = config.longest_edge * short / long
    new_short = round(edge)
    new_long = long if new_short == short else int(edge * long / short)
    new_short, new_long = (max(1, math.ceil(side / MULTIPLE)) * MULTIPLE for side in (new_short, new_long))
    return (new_short, new_long) if height <= width else (new_long, new_short)


def load(config: Mask2FormerConfig) -> PanopticNetwork:
    """The frozen network in float32 on the CPU."""
    if config.is_random and config.sizes is not None:
        plan = architecture(config, config.sizes)
        return weights.frozen(weights.seeded(lambda: PanopticNetwork(plan), config.seed, GAIN))
    folder = weights.locate(config.weights, config.folder)
    published = Architecture.from_dict(weights.read_config(folder))
    if published.backbone_config.model_type != "swin":
        raise ConfigError(f"a {published.backbone_config.model_type} backbone, only Swin is known", str(folder))
    found = {"channels": published.mask_feature_size, "sizes": sizes_of(published).identity()}
    weights.require_architecture(config.identity(), found, folder)
    state = weights.renamed(weights.read_folder(folder), weights.PUBLISHED_TO_SWIN)
    network = weights.fitted(lambda: PanopticNetwork(published), state, folder, spare=SPARE, unused=UNUSED)
    return weights.frozen(network)


def sizes_of(published: Architecture) -> Mask2FormerSizes:
    """The sizes that `architecture` would make this of."""
    swin = published.backbone_config
    return Mask2FormerSizes(
        width=swin.embed_dim,
        blocks=swin.depths,
        heads=swin.num_heads,
        window=swin.window_size,
        queries=published.num_queries,
        labels=published.num_labels,
        pixel_layers=published.encoder_layers,
        pixel_mlp=published.encoder_feedforward_dim,
        query_layers=published.decoder_layers - 1,
        query_mlp=published.dim_feedforward,
        decoder_heads=published.num_attention_heads,
    )


def architecture(config: Mask2FormerConfig, sizes: Mask2FormerSizes) -> Architecture:
    """What transformers calls a network of these sizes."""
    swin = SwinConfig(
        embed_dim=sizes.width,
        depths=sizes.blocks,
        num_heads=sizes.heads,
        window_size=sizes.window,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Architecture(
        backbone_config=swin,
        feature_size=config.channels,
        mask_feature_size=config.channels,
        hidden_dim=config.channels,
        num_queries=sizes.queries,
        num_labels=sizes.labels,
        encoder_layers=sizes.pixel_layers,
        encoder_feedforward_dim=sizes.pixel_mlp,
        # transformers counts the prediction made before the first layer as one more.
        decoder_layers=sizes.query_layers + 1,
        dim_feedforward=sizes.query_mlp,
        num_attention_heads=sizes.decoder_heads,
    )
