"""A network's maps, fast: what is around the network is the same for every teacher and lies here.

An image is prepared on the CPU, in any thread; the network sees prepared images together; and whoever takes a map waits for
it then. So a device has its next images before the last maps have left it. Streams of their own carry images to a CUDA device
and maps back, out of and into pinned memory, while it computes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from teachers import pixels
from teachers.base import Dtype, Grid

Waiting = Callable[[], np.ndarray]


class Network(Protocol):
    """A frozen network on its device."""

    def prepare(self, image: np.ndarray) -> Tensor:
        """What the network takes of an image: (3, H, W) float32 on the CPU. Threads may call it at once."""
        ...

    def maps(self, pixels_N3HW: Tensor) -> Tensor:
        """(N, C, h, w), for images of one prepared size."""
        ...


class Extractor:
    """The `Teacher` around a network. Kernels are chosen by batch size, so that images shown together may differ in their last
    bits from images shown alone; `features` shows them alone."""

    def __init__(self, network: Network, dtype: Dtype, device: str = "cpu"):
        self._network, self._dtype, self._device = network, dtype, device
        is_cuda = torch.device(device).type == "cuda"
        self._streams = (torch.cuda.Stream(device), torch.cuda.Stream(device)) if is_cuda else None

    def features(self, images: Sequence[np.ndarray], grids: Sequence[Grid | None]) -> list[np.ndarray]:
        return [self._feature(image, grid) for image, grid in zip(images, grids, strict=True)]

    def _feature(self, image: np.ndarray, grid: Grid | None) -> np.ndarray:
        (waiting,) = self.show([self.prepare(image)], [grid])
        return waiting()

    @torch.inference_mode()
    def prepare(self, image: np.ndarray) -> Tensor:
        """What `show` takes of an image. Threads may call it at once."""
        prepared_3HW = self._network.prepare(image)
        return prepared_3HW.pin_memory() if self._streams else prepared_3HW

    @torch.inference_mode()
    def show(self, prepared: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Waiting]:
        """For each of these images, prepared to one size, what waits for its map and gives it."""
        batch_N3HW = self._sent(prepared)
        with pixels.precision(self._dtype, self._device):
            maps_NChw = self._network.maps(batch_N3HW)
        return self._returned([_resized(map_Chw, grid) for map_Chw, grid in zip(maps_NChw, grids, strict=True)])

    def _sent(self, prepared_3HW: Sequence[Tensor]) -> Tensor:
        """The batch on the device; what is launched next there finds it whole."""
        if self._streams is None:
            return _batch(prepared_3HW).to(self._device)
        stream, compute = self._streams[0], torch.cuda.current_stream(self._device)
        with torch.cuda.stream(stream):
            batch_N3HW = _batch([image.to(self._device, non_blocking=True) for image in prepared_3HW])
        compute.wait_stream(stream)
        batch_N3HW.record_stream(compute)
        return batch_N3HW

    def _returned(self, maps_Chw: Sequence[Tensor]) -> list[Waiting]:
        """Each map on its way back."""
        if self._streams is None:
            return [map_Chw.cpu().numpy for map_Chw in maps_Chw]
        stream, arrived = self._streams[1], torch.cuda.Event(blocking=True)  # else a core would spin until it comes
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            copies_Chw = [torch.empty(map_Chw.shape, dtype=map_Chw.dtype, pin_memory=True) for map_Chw in maps_Chw]
            for copy_Chw, map_Chw in zip(copies_Chw, maps_Chw, strict=True):
                copy_Chw.copy_(map_Chw, non_blocking=True)
                map_Chw.record_stream(stream)
            arrived.record(stream)
        return [partial(_after, arrived, copy_Chw) for copy_Chw in copies_Chw]


def _batch(prepared_3HW: Sequence[Tensor]) -> Tensor:
    """One image stays where it lies, and as it lies there: kernels are chosen by that too."""
    return prepared_3HW[0][None] if len(prepared_3HW) == 1 else torch.stack(list(prepared_3HW))


def _resized(map_Chw: Tensor, grid: Grid | None) -> Tensor:
    """float32, on its grid: bilinear, align_corners False, no antialias, as the student would resize it."""
    return map_Chw.float() if grid is None else pixels.resize(map_Chw[None].float(), grid)[0]


def _after(event: torch.cuda.Event, copy_Chw: Tensor) -> np.ndarray:
    event.synchronize()
    return copy_Chw.numpy()
