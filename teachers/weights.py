"""Where a teacher's numbers come from: a published folder, an official checkpoint, or a seed; and their digest.

    weights = "random"       a function of the seed, the same in every process
    a folder                 Hugging Face layout: config.json and safetensors
    a `.pt` file             the official SAM 2 checkpoint, its names mapped to those of transformers

A checkpoint must fit its network exactly: a tensor too few, too many or of another shape is an error that names it.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from schemas.config import differences
from schemas.errors import ConfigError, DataError

ModuleT = TypeVar("ModuleT", bound=nn.Module)

MLP3 = r"(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+)\.layers"
OFFICIAL_TO_HF = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.", "vision_encoder.neck."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"neck\.convs\.(\d+)\.conv\.", r"neck.convs.\1."),
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (rf"{MLP3}\.0\.", r"\1.proj_in."),
    (rf"{MLP3}\.1\.", r"\1.layers.0."),
    (rf"{MLP3}\.2\.", r"\1.proj_out."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
]
# Memory and object pointers, under the names of both; the image model has no use for them.
VIDEO_ONLY = (
    r"^(memory_|maskmem_tpos_enc|mask_downsample\.|obj_ptr_|no_obj_|no_mem_pos_enc|object_pointer_proj\.|no_object_pointer|"
    r"no_memory_positional_encoding|temporal_positional_encoding_projection_layer\.|occlusion_spatial_embedding_parameter)"
)
# transformers 5 renamed Swin's parts; the published checkpoints keep the older names.
PUBLISHED_TO_SWIN = [
    (r"(pixel_level_module\.encoder)\.(encoder|embeddings)\.", r"\1.swin.\2."),
    (r"attention\.self\.(q|k|v)(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.self\.relative_position_bias_table$", "attention.relative_position_bias.relative_position_bias_table"),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
]


def seeded(build: Callable[[], ModuleT], seed: int, gain: float) -> ModuleT:
    """The network with weights that are a function of `seed` alone; the caller's random state is left as it was.

    The published initialisations suit a start of training and leave a fresh network almost constant over an image. Here
    linear and convolution weights have the standard deviation gain / sqrt(fan in) and embeddings 1, so that features vary
    with what is in the picture; `gain` brings their standard deviation near one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=gain / module.weight.shape[0] ** 0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
    return model


def frozen(model: ModuleT) -> ModuleT:
    """The same network in evaluation mode, its parameters out of reach of gradients."""
    return model.eval().requires_grad_(False)


def locate(weights: str, folder: str | None) -> Path:
    """Where the files of `weights` lie. Nothing is downloaded: a run must not depend on what a name means today."""
    if folder is None:
        remedy = f"Run `hf download {weights} --local-dir DIR` and set `folder` to DIR in the teacher's config."
        raise ConfigError("a teacher with published weights needs their `folder`", weights, remedy)
    if not Path(folder).exists():
        raise DataError(f"no weights of {weights} here", folder, "Correct `folder` in the teacher's config.")
    return Path(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The published `config.json`."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the published config: {error}", str(path)) from None
    if not isinstance(content, dict):
        raise DataError("the published config is no JSON object", str(path))
    return content


def require_architecture(asked: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Raises `ConfigError` naming each field of `found`, the published architecture, for which the config asks another."""
    faults = [line for name in found if asked[name] is not None for line in differences(asked[name], found[name], name)]
    if faults:
        raise ConfigError(f"the published network differs from the config ({'; '.join(faults)})", str(folder))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of every safetensors file of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError("no safetensors file here", str(folder), "Check `folder` in the teacher's config.")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise DataError(f"not a safetensors file: {error}", str(file)) from None
    return state


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of an official `.pt` file, read without running any code that it may carry."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"not a checkpoint of plain tensors: {reason}", str(path)) from None
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError("an official SAM 2 checkpoint holds its tensors under 'model', this one does not", str(path))
    return state


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image model's tensors under the names of transformers."""
    named = renamed(state, OFFICIAL_TO_HF)
    points = [f"prompt_encoder.point_embeddings.{index}.weight" for index in range(4)]
    if all(name in named for name in points):
        named["prompt_encoder.point_embed.weight"] = torch.cat([named.pop(name) for name in points])
    position = "shared_embedding.positional_embedding"
    if f"prompt_encoder.{position}" in named:
        named["shared_image_embedding.positional_embedding"] = named[f"prompt_encoder.{position}"]
    return named


def renamed(state: dict[str, Tensor], patterns: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """The same tensors, each pattern replaced in every name, in order."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    return named


def fitted(build: Callable[[], ModuleT], state: dict[str, Tensor], where: Path, spare: str, unused: str = "$^") -> ModuleT:
    """The network with these tensors, in float32; a name that matches `spare` may be left over, one that matches `unused`
    may be missing."""
    with torch.random.fork_rng(devices=[]):
        model = build()
    own = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in own or not re.search(spare, name)}
    missing = {name for name in own.keys() - state.keys() if not re.search(unused, name)}
    other_shape = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    groups = {"missing": missing, "unexpected": state.keys() - own.keys(), "of another shape": other_shape}
    faults = [f"{fault}: {_some(sorted(names))}" for fault, names in groups.items() if names]
    if faults:
        remedy = "Check `weights` and `sizes` in the teacher's config."
        raise DataError(f"the weights do not fit the network ({'; '.join(faults)})", str(where), remedy)
    model.load_state_dict(state, strict=False)
    return model


def _some(names: list[str], limit: int = 4) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def digest(model: nn.Module) -> str:
    """SHA-256 over every tensor of the network, by name: name, dtype, shape and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
