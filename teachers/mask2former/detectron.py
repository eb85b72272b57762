"""The original Mask2Former: its backbone and pixel decoder, built by detectron2 from the authors' own package.

Neither is on the package registry, both are taken from their repositories, and only this file may import them. In float32 on
a CPU its maps are those of transformers, to a few millionths of the largest value. Where the network runs in half precision on
a GPU, the original keeps its pixel decoder in float32.

Its deformable attention is a CUDA kernel, and the authors' package cannot be imported without a module of that name. Where
the kernel is not there or fails, on a CPU above all, their code goes on in plain torch, slower and without a word.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from schemas.errors import ConfigError, MissingLibrary
from teachers import weights
from teachers.mask2former import names
from teachers.mask2former.config import Mask2FormerConfig, Mask2FormerSizes, ResNet, Swin
from teachers.mask2former.original import read_original, require_sizes

INSTALL = (
    "Run `pip install 'sailyard[detectron2]'` and the lines that follow it in docs/features.md, 'The original Mask2Former': "
    "detectron2 and the authors' package come from their repositories. Or use the backend transformers."
)
LEVELS = ["res2", "res3", "res4", "res5"]
RESNET_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
SPARE = r"^criterion\.|^sem_seg_head\.predictor\."
# Which entry of the table of biases each pair of places looks up: made with the network, learned from nothing.
UNUSED = r"relative_position_index$"


class Original(nn.Module):
    """Both parts, under the names that they have in a checkpoint."""

    def __init__(self, backbone: nn.Module, pixel_decoder: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = nn.ModuleDict({"pixel_decoder": pixel_decoder})

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        """The mask features (N, C, h, w)."""
        return self.sem_seg_head["pixel_decoder"].forward_features(self.backbone(pixels_N3HW))[0]


def load(config: Mask2FormerConfig) -> Original:
    """The frozen original network, in float32 on the CPU, with the weights of an original checkpoint."""
    try:
        from detectron2.config import get_cfg
        from detectron2.modeling import build_backbone
        from mask2former import add_maskformer2_config
        from mask2former.modeling.pixel_decoder.fpn import build_pixel_decoder
    except ImportError as error:
        # Where the kernel is lacking, the authors' code names nothing and says so over several lines.
        lacking = error.name or f"more than is here: {' '.join(str(error).split())}"
        raise MissingLibrary(f"the detectron2 backend needs {lacking}", "backend", INSTALL) from None
    path = _checkpoint(config)
    settings = get_cfg()
    add_maskformer2_config(settings)
    describe(settings.MODEL, require_sizes(config, path), config.channels)

    def build() -> Original:
        backbone = build_backbone(settings)
        return Original(backbone, build_pixel_decoder(settings, backbone.output_shape()))

    state = names.current(read_original(path))
    return weights.frozen(weights.fitted(build, state, path, spare=SPARE, unused=UNUSED))


def _checkpoint(config: Mask2FormerConfig) -> Path:
    path = None if config.is_random else weights.locate(config.weights, config.folder)
    if path is None or path.is_dir():
        remedy = "Name its network in `weights`, and in `folder` the .pkl or .pth file."
        raise ConfigError("the detectron2 backend reads an original checkpoint only", str(path or config.weights), remedy)
    return path


def describe(model: Any, sizes: Mask2FormerSizes, channels: int) -> None:
    """Sets what the authors' configs say of backbone and pixel decoder in detectron2's `MODEL`."""
    model.BACKBONE.FREEZE_AT = 0
    if isinstance(sizes.backbone, ResNet):
        _describe_resnet(model, sizes.backbone)
    else:
        _describe_swin(model, sizes.backbone)
    head = model.SEM_SEG_HEAD
    head.PIXEL_DECODER_NAME, head.NORM, head.COMMON_STRIDE = "MSDeformAttnPixelDecoder", "GN", 4
    head.CONVS_DIM = head.MASK_DIM = channels
    head.IN_FEATURES, head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = LEVELS, LEVELS[1:]
    head.TRANSFORMER_ENC_LAYERS = sizes.pixel_layers
    model.MASK_FORMER.NHEADS, model.MASK_FORMER.DROPOUT = sizes.decoder_heads, 0.0


def _describe_swin(model: Any, swin: Swin) -> None:
    model.BACKBONE.NAME = "D2SwinTransformer"
    model.SWIN.EMBED_DIM, model.SWIN.WINDOW_SIZE = swin.width, swin.window
    model.SWIN.DEPTHS, model.SWIN.NUM_HEADS = list(swin.blocks), list(swin.heads)


def _describe_resnet(model: Any, resnet: ResNet) -> None:
    if resnet.blocks not in RESNET_DEPTHS:
        raise ConfigError(f"detectron2 has no ResNet of {resnet.blocks} blocks", "sizes.backbone.blocks")
    model.BACKBONE.NAME = "build_resnet_backbone"
    model.RESNETS.DEPTH, model.RESNETS.STRIDE_IN_1X1 = RESNET_DEPTHS[resnet.blocks], False
    model.RESNETS.OUT_FEATURES = LEVELS
    model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.WIDTH_PER_GROUP = resnet.width
    model.RESNETS.RES2_OUT_CHANNELS = 4 * resnet.width
