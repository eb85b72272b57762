"""The official `sam2` package, where it can be imported, to be held against our classes on the same weights.

It wants torchvision, of which the registry has CUDA builds only. Beside a CPU torch their compiled operators do not load, and
then neither `torchvision` nor, once it is installed, `transformers` can be imported: both look up `torchvision::nms` and
`torchvision::qnms` on the way. SAM 2 uses one of the two, in its mask generator. So where the compiled ones are missing, and
only there, `define_missing_operators` defines both through torch.library, before anything imports either package. That is all
that `make parity` needs beyond an environment with `sam2` in it; nothing of ours uses torchvision.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from teachers.sam2.config import Sam2Config


def define_missing_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.impl("torchvision::nms", "cpu", plain_nms)


def plain_nms(boxes_M4: Tensor, scores_M: Tensor, limit: float) -> Tensor:
    """Greedy suppression, box by box: a float32 overlap against a float64 limit, as torchvision compiles it for the CPU."""
    kept: list[int] = []
    for index in scores_M.argsort(descending=True, stable=True).tolist():
        if not any(_overlap(boxes_M4[better].numpy(), boxes_M4[index].numpy()) > limit for better in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    (left, top, right, bottom), (x0, y0, x1, y1) = one.astype(np.float32), other.astype(np.float32)
    shared = max(np.float32(0), min(right, x1) - max(left, x0)) * max(np.float32(0), min(bottom, y1) - max(top, y0))
    either = (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared
    return float(shared / either) if either else float("nan")


def import_official() -> SimpleNamespace:
    """The parts of the package that the tests compare with; without the package the test is skipped."""
    for name in ("sam2", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed here: make parity")
    import torchvision.extension
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor
    from sam2.utils.transforms import SAM2Transforms

    # torchvision asks, at each call, whether its operators are there. They are, though not from its own library.
    torchvision.extension._has_ops = lambda: True
    return SimpleNamespace(
        build=build_sam2, Predictor=SAM2ImagePredictor, Generator=SAM2AutomaticMaskGenerator, Transforms=SAM2Transforms
    )


def overrides(config: Sam2Config) -> list[str]:
    """What turns the official description of the tiny model into one of these sizes."""
    sizes = config.sizes
    trunk = {
        "embed_dim": sizes.widths[0],
        "num_heads": sizes.heads[0],
        "stages": list(sizes.blocks),
        "global_att_blocks": list(sizes.global_blocks),
        "window_spec": list(sizes.windows),
        "window_pos_embed_bkg_spatial_size": list(sizes.position_grid),
    }
    lines = [f"++model.image_encoder.trunk.{name}={value}" for name, value in trunk.items()]
    neck = f"++model.image_encoder.neck.backbone_channel_list={list(sizes.widths[::-1])}"
    return [*lines, neck, f"++model.image_size={config.image_size}"]


def publish(model: nn.Module, path: Path, seed: int = 0) -> None:
    """Gives the network weights of which none is trivial, its masks patches, and writes the checkpoint as Meta does."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=random)
            if tensor.ndim == 1 or name.endswith(("pos_embed", "pos_embed_window", "no_mem_embed")):
                tensor.add_(0.1 * noise)
            else:
                tensor.copy_(noise if "embed" in name or "token" in name else 0.72 * noise / tensor[0].numel() ** 0.5)
        decoder = model.sam_mask_decoder
        decoder.output_upscaling[3].bias[0] = 4
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[2].weight.mul_(30)
            mlp.layers[2].weight[0], mlp.layers[2].bias[0] = 0, -14
        decoder.iou_prediction_head.layers[2].weight.mul_(4)
    torch.save({"model": model.state_dict()}, path)


def crowd(random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes on a small square and scores of few values: equal ones, touching ones, some without area."""
    many, side = (int(torch.randint(low, high, (1,), generator=random)) for low, high in ((0, 40), (2, 14)))
    corners = torch.randint(0, side, (many, 2, 2), generator=random)
    scores = torch.randint(0, 20, (many,), generator=random) / 20
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1), scores
