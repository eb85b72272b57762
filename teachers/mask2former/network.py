"""Mask2Former through transformers: the pixel decoder's mask features as a teacher.

The input follows the processor of the reference: resized by Pillow (bilinear, bytes in, bytes out), then to 0..1 and
normalised.

    Q queries   H, W the image   h, w stride 4 of the input
"""

import math
from pathlib import Path

import numpy as np
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import Mask2FormerModel, Mask2FormerPreTrainedModel, PretrainedConfig, ResNetConfig, SwinConfig

from schemas.errors import ConfigError
from teachers import pixels, weights
from teachers.mask2former import labels, names
from teachers.mask2former.config import Mask2FormerConfig, Mask2FormerSizes, ResNet, Swin
from teachers.mask2former.original import read_original, require_sizes

GAIN = 1.41
MULTIPLE = 32
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Published with the network but not part of it here, and the reverse: a norm that the backbone makes and never reads, and
# the batches that a norm has seen, which detectron2's frozen norms do not count.
SPARE = r"^criterion\.|relative_position_index$"
UNUSED = r"\.swin\.layernorm\.|\.num_batches_tracked$"


class Architecture(transformers.Mask2FormerConfig):
    """transformers warns of any backbone but Swin, though its ResNet is detectron2's: stride in the 3x3 convolution, norms
    with fixed statistics in evaluation, epsilon 1e-5."""

    backbones_supported = ["swin", "resnet"]


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


class MaskFeatures(nn.Module):
    """Backbone and pixel decoder of the network, which is all that its mask features need."""

    def __init__(self, network: PanopticNetwork):
        super().__init__()
        self.pixel_level = network.model.pixel_level_module

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        return self.pixel_level(pixels_N3HW).decoder_last_hidden_state


class Mask2FormerFeatures:
    """The mask features (N, C, h, w), of transformers' network or of the original one."""

    def __init__(self, config: Mask2FormerConfig, device: str = "cpu"):
        self._config, self._network = config, _mask_features(config).to(device)

    def prepare(self, image: np.ndarray) -> Tensor:
        return preprocess(image, self._config)[0]

    def maps(self, pixels_N3HW: Tensor) -> Tensor:
        return self._network(pixels_N3HW)


def _mask_features(config: Mask2FormerConfig) -> nn.Module:
    if config.backend == "transformers":
        return MaskFeatures(load(config))
    from teachers.mask2former import detectron

    return detectron.load(config)


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
    with weights.at_hand(config.weights, config.folder) as path:
        return weights.frozen(_load_folder(config, path) if path.is_dir() else _load_original(config, path))


def _load_folder(config: Mask2FormerConfig, folder: Path) -> PanopticNetwork:
    published = Architecture.from_dict(weights.read_config(folder))
    found = {"channels": published.mask_feature_size, "sizes": sizes_of(published, folder).identity()}
    weights.require_architecture(config.identity(), found, folder)
    state = weights.renamed(weights.read_folder(folder), names.PUBLISHED)
    return weights.fitted(lambda: PanopticNetwork(published), state, folder, spare=SPARE, unused=UNUSED)


def _load_original(config: Mask2FormerConfig, path: Path) -> PanopticNetwork:
    plan = architecture(config, require_sizes(config, path))
    state = names.from_original(read_original(path))
    return weights.fitted(lambda: PanopticNetwork(plan), state, path, spare=SPARE, unused=UNUSED)


def sizes_of(published: Architecture, folder: Path) -> Mask2FormerSizes:
    """The sizes that `architecture` would make this of."""
    return Mask2FormerSizes(
        backbone=_backbone_of(published.backbone_config, folder),
        queries=published.num_queries,
        labels=published.num_labels,
        pixel_layers=published.encoder_layers,
        pixel_mlp=published.encoder_feedforward_dim,
        query_layers=published.decoder_layers - 1,
        query_mlp=published.dim_feedforward,
        decoder_heads=published.num_attention_heads,
    )


def _backbone_of(found: PretrainedConfig, folder: Path) -> Swin | ResNet:
    if isinstance(found, SwinConfig):
        return Swin(width=found.embed_dim, blocks=found.depths, heads=found.num_heads, window=found.window_size)
    if isinstance(found, ResNetConfig) and found.layer_type == "bottleneck" and not found.downsample_in_bottleneck:
        return ResNet(width=found.embedding_size, blocks=found.depths)
    raise ConfigError(f"a {found.model_type} backbone of this form, only Swin and ResNet-50 are known", str(folder))


def architecture(config: Mask2FormerConfig, sizes: Mask2FormerSizes) -> Architecture:
    """What transformers calls a network of these sizes."""
    return Architecture(
        backbone_config=_backbone(sizes.backbone),
        feature_size=config.channels,
        mask_feature_size=config.channels,
        hidden_dim=config.channels,
        num_queries=sizes.queries,
        id2label=labels.coco(sizes.labels),
        encoder_layers=sizes.pixel_layers,
        encoder_feedforward_dim=sizes.pixel_mlp,
        # transformers counts the prediction made before the first layer as one more.
        decoder_layers=sizes.query_layers + 1,
        dim_feedforward=sizes.query_mlp,
        num_attention_heads=sizes.decoder_heads,
    )


def _backbone(sizes: Swin | ResNet) -> PretrainedConfig:
    if isinstance(sizes, ResNet):
        widths = [sizes.width * factor for factor in (4, 8, 16, 32)]
        return ResNetConfig(embedding_size=sizes.width, hidden_sizes=widths, depths=sizes.blocks, out_features=STAGES)
    return SwinConfig(
        embed_dim=sizes.width,
        depths=sizes.blocks,
        num_heads=sizes.heads,
        window_size=sizes.window,
        drop_path_rate=0.0,
        out_features=STAGES,
    )
