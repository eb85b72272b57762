"""What surrounds a teacher's network costs how much: the features stage against a bare loop over the same network.

The bare loop shows the network pictures that were decoded and prepared beforehand and lie on its device, and throws the maps
away. The stage decodes a shard of IMAGES, prepares, shows, resizes to the student's grid, brings back, encodes and makes the
table. A third contender is the authors' way: one picture after the other, decoded and prepared in line, through the whole
network: all of SAM 2's levels as its predictor makes them, Mask2Former with its query decoder. A fourth only decodes the
pictures' files. `one_pass` is how much faster both columns are made in one pass, in which a picture is decoded once, than one
after the other.

On the CPU the networks are the smallest that are published at half their width, on inputs of `side` pixels where a full one has
1024: by default a sixteenth of the work, on a quarter of the pixels. Where there is a CUDA device they are SAM 2.1 large and
Mask2Former Swin-L on inputs of full size. Weights are random, which cost the same.
"""

import hashlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from harness import Bar, Result, interleaved, main, speed
from PIL import Image
from torch import Tensor

from schemas.grids import PatchGrid
from schemas.pictures import decode, image_key
from schemas.tables import IMAGES
from stages.base import Resources
from stages.features import FeaturesStage, at_once, extract
from stages.pipeline import same_shape
from teachers import pixels
from teachers.config import TeacherConfig
from teachers.extract import Network
from teachers.mask2former import network as mask2former
from teachers.mask2former.config import PRESETS as MASK2FORMER_PRESETS
from teachers.mask2former.config import TINY as SWIN_TINY
from teachers.mask2former.config import Mask2FormerConfig, Mask2FormerSizes
from teachers.sam2 import network as sam2
from teachers.sam2.config import PRESETS as SAM2_PRESETS
from teachers.sam2.config import Sam2Config, Sam2Sizes

LARGE = {
    "sam2": SAM2_PRESETS["facebook/sam2.1-hiera-large"]["sizes"],
    "mask2former": MASK2FORMER_PRESETS["facebook/mask2former-swin-large-coco-panoptic"]["sizes"],
}
# The smallest that are published, at half their width.
HALF: dict[str, Any] = {
    "sam2": SAM2_PRESETS["facebook/sam2.1-hiera-tiny"]["sizes"] | {"widths": (48, 96, 192, 384)},
    "mask2former": MASK2FORMER_PRESETS["facebook/mask2former-swin-tiny-coco-panoptic"]["sizes"]
    | {"backbone": SWIN_TINY | {"width": 48}, "pixel_mlp": 512, "query_mlp": 1024},
}
CELLS = {"sam2": 1, "mask2former": 4}  # of the student's grid, to a patch
BARE, STAGE, AUTHORS, DECODE = "bare loop", "stage", "authors' way", "decode"


@dataclass(frozen=True)
class Contender:
    """One teacher, in the three ways; and what a way takes of which the teacher has no part."""

    stage: FeaturesStage
    images: pa.Table
    resources: Resources

    def ways(self) -> dict[str, Callable[[], object]]:
        function = self.stage.open(self.resources, {})
        ways = {BARE: self._bare(), STAGE: lambda: function({"images": self.images}), AUTHORS: self._authors()}
        return {name: self._to_the_end(way) for name, way in ways.items()} | {DECODE: self._decode}

    def _decode(self) -> None:
        for data in self.images.column("bytes"):
            decode(data.as_py())

    def prepared(self, network: Network) -> list[Tensor]:
        """The batches on the device, as the stage puts them together."""
        batch = 1 if self.resources.device == "cpu" else self.resources.batch
        single = [network.prepare(decode(data.as_py())) for data in self.images.column("bytes")]
        groups = same_shape(single, lambda image: image.shape, batch, len(single))
        return [torch.stack(group).to(self.resources.device) for group in groups]

    def _bare(self) -> Callable[[], object]:
        config, device = self.stage.teacher, self.resources.device
        kind = {"sam2": sam2.Sam2Features, "mask2former": mask2former.Mask2FormerFeatures}[config.kind]
        network: Network = kind(config, device)
        batches = self.prepared(network)
        return lambda: [self._shown(network.maps, batch) for batch in batches]

    def _authors(self) -> Callable[[], object]:
        config, device = self.stage.teacher, self.resources.device
        if config.kind == "sam2":
            whole = sam2.load(config).to(device)
            prepare = lambda image: sam2.preprocess(image, config.image_size)  # noqa: E731
            answer = lambda batch: whole.get_image_embeddings(batch)[-1]  # noqa: E731
        else:
            whole = mask2former.load(config).to(device)
            prepare = lambda image: mask2former.preprocess(image, config)  # noqa: E731
            answer = lambda batch: whole.model(batch).pixel_decoder_last_hidden_state  # noqa: E731

        def one(data: bytes) -> np.ndarray:
            image = decode(data)
            map_1Chw = self._shown(answer, prepare(image).to(device))
            return pixels.resize(map_1Chw.float(), self.stage.spec.grid_of(image.shape[1], image.shape[0]))[0].cpu().numpy()

        def in_line() -> None:
            before = torch.get_num_threads()
            torch.set_num_threads(self.resources.threads)  # beside a device the stage leaves torch one
            for data in self.images.column("bytes"):
                one(data.as_py())
            torch.set_num_threads(before)

        return in_line

    @torch.inference_mode()
    def _shown(self, network: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        with pixels.precision(self.stage.teacher.dtype, self.resources.device):
            return network(batch)

    def _to_the_end(self, way: Callable[[], object]) -> Callable[[], object]:
        """What is launched on a device is over when the time is taken."""
        return way if self.resources.device == "cpu" else lambda: (way(), torch.cuda.synchronize())


class Worked:
    """A way, and the processor's seconds of all threads in each round: what it costs where no core is idle."""

    def __init__(self, way: Callable[[], object]):
        self._way = way
        self.seconds: list[float] = []

    def __call__(self) -> None:
        start = time.process_time()
        self._way()
        self.seconds.append(time.process_time() - start)


def photographs(count: int) -> pa.Table:
    """IMAGES of noisy gradients as JPEG, about as large as those of COCO; every fourth stands upright."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        image = (np.asarray(coarse, dtype=np.int16) + rng.integers(-8, 9, (480, 640, 3))).clip(0, 255).astype(np.uint8)
        rows.append(_row(image.swapaxes(0, 1) if number % 4 == 3 else image))
    return IMAGES.rows(rows)


def _row(image: np.ndarray) -> dict[str, Any]:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=90)
    data = sink.getvalue()
    row = {"image_key": image_key(decode(data)), "width": image.shape[1], "height": image.shape[0], "format": "JPEG"}
    return row | {"bytes": data, "sha256": hashlib.sha256(data).hexdigest(), "aliases": []}


def teachers(device: str, side: int) -> dict[str, TeacherConfig]:
    if device == "cpu":
        sizes, full = HALF, {"dtype": "float32", "channels": 128}
        scale = side / 1024
    else:
        sizes, full = LARGE, {"dtype": "bfloat16", "channels": 256}
        scale = 1.0
    edges = {"shortest_edge": round(800 * scale), "longest_edge": round(1333 * scale)}
    return {
        "sam2": Sam2Config(sizes=Sam2Sizes(**sizes["sam2"]), image_size=round(1024 * scale), **full),
        "mask2former": Mask2FormerConfig(sizes=Mask2FormerSizes(**sizes["mask2former"]), **edges, **full),
    }


def busy(work: Callable[[], object]) -> float:
    """The share of the time of `work` in which at least one kernel ran on the device."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    kernels = [e.time_range for e in seen.events() if e.device_type == DeviceType.CUDA and not e.name.startswith("Mem")]
    return _covered([(kernel.start, kernel.end) for kernel in kernels]) / 1e6 / seconds


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def measure(folder: Path, *, pictures: int, rounds: int, batch: int, threads: int, side: int) -> Result:
    device, images = "cuda" if torch.cuda.is_available() else "cpu", photographs(pictures)
    resources = Resources(executor="local", device=device, batch=batch, threads=threads)
    least, bars, table, stages = 0.93 if device == "cpu" else 0.97, [], [], []
    for name, config in teachers(device, side).items():
        grid = PatchGrid(patch=16, max_side=1024, cells=CELLS[name])
        stages.append(FeaturesStage(name=name, teacher=config, grid=grid))
        ways = Contender(stages[-1], images, resources).ways()
        interleaved(ways, 1)  # warm
        worked = {name: Worked(way) for name, way in ways.items()}
        times = interleaved(worked, rounds)
        bars.append(Bar(f"{name}: stage / bare loop", speed(times, STAGE, BARE), at_least=least))
        if device != "cpu":
            bars.append(Bar(f"{name}: device busy", busy(ways[STAGE]), at_least=0.95))
        seconds = {f"{way}, ms": times[way] for way in ways} | {f"{way}, CPU ms": worked[way].seconds for way in (BARE, STAGE)}
        paces = {column: round(1000 * statistics.median(each) / pictures, 2) for column, each in seconds.items()}
        table.append({"teacher, a picture": name, **paces, "stage / authors' way": round(speed(times, STAGE, AUTHORS), 3)})
    size = sum(len(data.as_py()) for data in images.column("bytes")) // pictures
    facts = {"device": _device(device), "pictures": f"JPEG of 640 x 480, {size} bytes"}
    return Result(bars, table, facts | {"one_pass": one_pass(stages, images, resources, rounds)})


def one_pass(stages: Sequence[FeaturesStage], images: pa.Table, resources: Resources, rounds: int) -> float:
    lanes, pace = [stage.lane(resources, {}) for stage in stages], at_once(resources)
    apart, joint = "one after the other", "in one pass"
    ways = {apart: lambda: [extract([lane], images, **pace) for lane in lanes], joint: lambda: extract(lanes, images, **pace)}
    interleaved(ways, 1)  # warm
    return round(speed(interleaved(ways, rounds), joint, apart), 3)


def _device(device: str) -> str:
    return "cpu, small networks" if device == "cpu" else f"{torch.cuda.get_device_name()}, full networks"


if __name__ == "__main__":
    main(
        "extract",
        measure,
        pictures=(6, "pictures; for a device at least 512, so that a shard's first and last batch are few"),
        rounds=(7, "rounds"),
        batch=(16, "pictures shown together on a device; on the CPU it is one"),
        threads=(1, "of the network on the CPU; of what is around it on a device"),
        side=(512, "pixels of SAM 2's input on the CPU, where a full one has 1024; Mask2Former's in proportion"),
    )
