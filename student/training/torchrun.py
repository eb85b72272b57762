"""The `torch.distributed` group of the workers that torchrun has started: its variables say who is who, and where they meet."""

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


@contextmanager
def joined(device: str, **meeting: Any) -> Iterator[None]:
    """Be one of them for the length of the block. device: this worker's own, with its number where there are several.
    meeting: where they meet and who this one is, as `init_process_group` takes it, where no variables say so."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", **meeting)
    try:
        yield
    finally:
        dist.destroy_process_group()
        _forget()


def _forget() -> None:
    """Empty torch's caches of the group. They hold every mesh of a sliced student, a mesh holds its group, and a group its
    threads; one of those that drops its last message while Python ends, ends the process by an abort (pytorch/pytorch#190489).
    """
    from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()
    clear_redistribute_planner_cache()
    for cache in gc.get_objects():
        if type(cache) is functools._lru_cache_wrapper and cache.__module__.startswith("torch.distributed"):
            cache.cache_clear()
    gc.collect()
