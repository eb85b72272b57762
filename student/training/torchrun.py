"""The `torch.distributed` group of the workers that torchrun has started: its variables say who is who, and where they meet."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of them for the length of the block. device: this worker's own, with its number where there are several."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
