"""A teacher's passport: what makes its features beyond its config, and what it makes of golden pictures.

Two things are written down. *Facts*: a digest of the network's tensors, the numbers of the preprocessing, the versions of the
libraries, precision and device. And a *probe*: statistics of the features of three pictures that are computed, not stored.
Whoever opens the teacher again compares both. A fact may change (a library was upgraded, a GPU took over) and the features
stay: that is worth a note. Features that left the band are other features, whatever the facts say.

The band is the teacher's own: how far its statistics lie apart in bfloat16 and in float32, twice that for a teacher that runs
in bfloat16, a quarter for the others, whose products are an eighth as coarse at worst. Measured on seeded networks, in
units of the deviation of a map: the band is 0.003 to 0.04 in bfloat16 and an eighth of it in float32. Another number of
threads moves the statistics by 5e-7 in float32 and 4e-3 in bfloat16, products as coarse as a GPU's by half the band. No
antialiasing moves one of them by 0.1 or more, bicubic for bilinear by 0.026 or more, half a pixel by 0.09 or more, CLIP's
normalisation for ImageNet's by 0.08 or more.

What the band cannot see: a weight moved so little that no statistic leaves it (by 1e-3, say), and what these pictures do
not show. The digest sees any changed bit, but not whether it matters.
"""

import importlib.metadata
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.config import Config, differences
from schemas.errors import NonFinite
from teachers.base import Dtype, Teacher
from teachers.config import TeacherConfig
from teachers.mask2former.config import Mask2FormerConfig
from teachers.radio.config import RadioConfig
from teachers.sam2.config import Sam2Config

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("torch", "transformers", "pillow", "numpy")
# Height and width. Teachers shrink the first, so that antialiasing shows, and stretch the others.
PICTURES = ((1152, 1536), (200, 120), (97, 331))
VALUES = 64
# Of what rounding to bfloat16 moves. The root of two of it lies between two roundings that differ everywhere; float16, and the
# float32 that GPUs may take for convolutions, keep three bits more.
MARGIN: dict[Dtype, float] = {"bfloat16": 2.0, "float16": 0.25, "float32": 0.25}


class Probe(Config):
    """What a teacher made of one golden picture; `scale` is the standard deviation of the whole map."""

    shape: tuple[int, int, int]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    values: tuple[float, ...]


class Spread(Config):
    """How far two probes lie apart, in units of `scale`: the farthest channel's mean and deviation, and the root mean square
    over the values."""

    mean: float
    std: float
    values: float


class Passport(Config):
    """Facts about a teacher, a probe for each golden picture, and how far another probe of the same teacher may be."""

    kind: str
    weights: str
    digest: str
    dtype: Dtype
    device: str
    input: dict[str, Any]
    versions: dict[str, str]
    probes: tuple[Probe, ...]
    band: Spread


def passport(config: TeacherConfig, device: str = "cpu", threads: int = 1) -> Passport:
    """The passport of the teacher that `config` describes; it is built for this, and again in another precision."""
    from teachers.build import build_teacher

    other: Dtype = "float32" if config.dtype == "bfloat16" else "bfloat16"
    rounded = _probes(build_teacher(config.model_copy(update={"dtype": other}), device, threads))
    made = passport_of(build_teacher(config, device, threads), config, device, Spread(mean=0, std=0, values=0))
    spreads = [spread(*pair) for pair in zip(made.probes, rounded, strict=True)]
    widest = {name: max(getattr(one, name) for one in spreads) * MARGIN[config.dtype] for name in Spread.model_fields}
    return made.model_copy(update={"band": Spread(**widest)})


def passport_of(teacher: Teacher, config: TeacherConfig, device: str, band: Spread) -> Passport:
    """The passport of a teacher that was built of `config` on `device`, with the band of an earlier one."""
    from teachers.weights import digest

    return Passport(
        kind=config.kind,
        weights=config.weights,
        digest=digest(network(teacher)),
        dtype=config.dtype,
        device=device.split(":")[0],
        input=_input(config),
        versions={name: importlib.metadata.version(name) for name in _libraries(config)},
        probes=tuple(_probes(teacher)),
        band=band,
    )


def network(teacher: Teacher) -> "nn.Module":
    """The modules that make its features, by the attributes of the teacher, or of what it holds, that they are kept in."""
    from torch import nn

    held = [teacher, *vars(teacher).values()]
    fields = [item for holder in held if hasattr(holder, "__dict__") for item in vars(holder).items()]
    found = {name: value for name, value in fields if isinstance(value, nn.Module)}
    assert found, f"{type(teacher).__name__} shows no module, so its weights cannot be told from others"
    return nn.ModuleDict(found)


def _libraries(config: TeacherConfig) -> tuple[str, ...]:
    original = isinstance(config, Mask2FormerConfig) and config.backend == "detectron2"
    return (*LIBRARIES, "detectron2") if original else LIBRARIES


def _input(config: TeacherConfig) -> dict[str, Any]:
    from teachers.pixels import IMAGENET_MEAN, IMAGENET_STD

    imagenet = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    match config:
        case Sam2Config():
            return {"resize": "squash, bilinear, antialiased", "size": config.image_size} | imagenet
        case Mask2FormerConfig():
            edges = {"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge}
            return {"resize": "keep aspect, Pillow bilinear, sides to multiples of 32"} | edges | imagenet
        case RadioConfig():
            resize = "keep aspect, Pillow bicubic, then bilinear to multiples of the patch"
            return {"resize": resize, "shortest_edge": config.shortest_edge, "mean and std": "among the weights"}


@cache
def golden(height: int, width: int) -> np.ndarray:
    """A picture of this size, the same everywhere: ramps, tiles and grain in integers, HWC uint8, read-only."""
    y, x = np.ogrid[:height, :width]
    planes = []
    for channel in range(3):
        ramp = (x * (channel + 1) * 255 // width + y * (3 - channel) * 255 // height) % 256
        tiles = (x // (7 + 5 * channel) * 53 + y // (11 + 3 * channel) * 97 + channel * 31) % 7 * 36
        grain = ((x * 1103 + y * 2749 + channel * 577) * (x + 3 * y + channel + 1) >> 4) % 256
        planes.append((4 * ramp + 3 * tiles + grain) // 8)
    image = np.stack(planes, axis=-1).astype(np.uint8)
    image.setflags(write=False)
    return image


def _probes(teacher: Teacher) -> list[Probe]:
    return [_probe(teacher, number, size) for number, size in enumerate(PICTURES, start=1)]


def _probe(teacher: Teacher, number: int, size: tuple[int, int]) -> Probe:
    (map_Chw,) = teacher.features([golden(*size)], [None])
    if not np.isfinite(map_Chw).all():
        raise NonFinite("the teacher's features are not finite", f"golden picture {number}, {size[0]} x {size[1]}")
    values_CP = map_Chw.reshape(len(map_Chw), -1).astype(np.float64)
    places = [index * 2654435761 % values_CP.size for index in range(1, VALUES + 1)]  # spread like a multiplicative hash
    return Probe(
        shape=map_Chw.shape,
        scale=_rounded(values_CP.std()),
        mean=_rounded(values_CP.mean(axis=1)),
        std=_rounded(values_CP.std(axis=1)),
        values=_rounded(values_CP.reshape(-1)[places]),
    )


def _rounded(values: Any) -> Any:
    """To seven digits, as float32 has them."""
    return tuple(float(f"{value:.7g}") for value in values) if np.ndim(values) else float(f"{values:.7g}")


def moved(before: Passport, now: Passport) -> list[str]:
    """A line for each thing that is not as it was; none where all is."""
    return [*drift(before, now), *changed_facts(before, now)]


def changed_facts(before: Passport, now: Passport) -> list[str]:
    """A line for each fact that differs, old -> new; the features may be the same all the same."""
    lines = [] if before.digest == now.digest else [f"weights: digest {before.digest[:12]} -> {now.digest[:12]}"]
    names = sorted(before.versions.keys() | now.versions.keys())
    versions = [(name, before.versions.get(name, "none"), now.versions.get(name, "none")) for name in names]
    lines += [f"{name} {old} -> {new}" for name, old, new in versions if old != new]
    return lines + [line for name in ("kind", "weights", "dtype", "device", "input") for line in _difference(before, now, name)]


def _difference(before: Passport, now: Passport, name: str) -> list[str]:
    return differences(getattr(before, name), getattr(now, name), name)


def drift(before: Passport, now: Passport) -> list[str]:
    """A line for each statistic of each golden picture that has left the band of `before`."""
    if len(before.probes) != len(now.probes):
        return [f"features: {len(before.probes)} golden pictures -> {len(now.probes)}"]
    pairs = enumerate(zip(before.probes, now.probes, strict=True), start=1)
    return [f"features: {line}" for number, (old, new) in pairs for line in _leaving(old, new, number, before.band)]


def spread(old: Probe, new: Probe) -> Spread:
    """How far two probes of one shape lie apart."""
    mean_C, std_C, values = _apart(old, new)
    return Spread(mean=mean_C.max(), std=std_C.max(), values=values)


def _apart(old: Probe, new: Probe) -> tuple[np.ndarray, np.ndarray, float]:
    """By channel means and deviations, and the root mean square over the values, in units of the older scale."""
    unit = max(old.scale, float(np.finfo(np.float32).tiny))
    mean_C, std_C, values = (np.abs(np.subtract(getattr(new, name), getattr(old, name))) for name in Spread.model_fields)
    return mean_C / unit, std_C / unit, float(np.sqrt(np.mean(values**2))) / unit


def _leaving(old: Probe, new: Probe, number: int, band: Spread) -> Iterator[str]:
    if old.shape != new.shape:
        yield f"shape on picture {number} {old.shape} -> {new.shape}"
        return
    mean_C, std_C, values = _apart(old, new)
    for name, off_C, most in (("mean", mean_C, band.mean), ("deviation", std_C, band.std)):
        if off_C.max() > most:
            yield f"{name} of channel {off_C.argmax()} on picture {number} by {off_C.max():.2g}, the band is {most:.2g}"
    if values > band.values:
        yield f"{len(old.values)} values at fixed places on picture {number} by {values:.2g}, the band is {band.values:.2g}"
