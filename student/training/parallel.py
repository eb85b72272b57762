"""A run spread over the workers of a `torch.distributed` group: what they tell each other, and who holds which weights.

    ddp    every worker holds everything; gradients are summed in one message a step
    fsdp   each holds a slice of every weight, gradient and moment, and gathers a block's weights while it goes through it

Either way every worker gets the gradient of the whole batch, and a checkpoint holds whole tensors, so that a run may go on
under the other way or by another number of workers. Alone there is nothing to spread, and nothing is said.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from schemas.errors import SailyardError

SHARED = (SailyardError, OSError, torch.OutOfMemoryError)
MadeT = TypeVar("MadeT")


def worker() -> tuple[int, int]:
    """(this worker's number, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def on_all(work: Callable[[], MadeT], device: str) -> MadeT:
    """What `work` makes here. An error of ours on one worker, of its disk or of its memory, is raised on all of them: none is
    left waiting for it."""
    made, error = [], None
    try:
        made = [work()]
    except SHARED as raised:
        error = raised
    if any(anywhere([error is not None], device)):
        error = next(filter(None, gathered(error)))
    if error:
        raise error
    return made[0]


def summed(values: Tensor) -> Tensor:
    """The sum of all workers' values."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def anywhere(flags: Sequence[bool], device: str) -> list[bool]:
    """For each flag whether it is raised on some worker; every worker gets the same answer."""
    if not dist.is_initialized():
        return list(flags)
    return [count > 0 for count in summed(torch.tensor(flags, dtype=torch.int32, device=device)).tolist()]


def gathered(value: Any) -> list[Any]:
    """Every worker's value, in the order of the workers."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def joined(values: Sequence[MadeT]) -> list[MadeT]:
    """All workers' values behind each other."""
    return [value for each in gathered(values) for value in each]


def wait() -> None:
    """Until all workers are here."""
    if dist.is_initialized():
        dist.barrier()


def shard(modules: Iterable[nn.Module], device: str) -> None:
    """Slice the weights of each module over the workers, in place: every module of the list is gathered as one, so whatever
    is part of another must stand before it. Gradients come out summed, as under ddp."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # The student's outputs are views, and nobody writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(torch.device(device).type, (worker()[1],))
    for module in modules:
        if any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by its name, gathered one at a time: all workers must ask for all of them, in one order."""
    for name, tensor in tensors.items():
        yield name, tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, which every worker has whole, laid out as `parameter` is; a count of steps is not sliced."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    there = value.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Every worker gets the sum of all workers' gradients, which is the gradient of the whole batch.

    In one message: a hundred small ones cost more than the step's arithmetic. Sliced gradients have been summed already.
    """
    if worker()[1] == 1:
        return
    gradients = [parameter.grad for parameter in parameters if not isinstance(parameter, DTensor)]
    if gradients:
        together = summed(torch.cat([gradient.flatten() for gradient in gradients]))
        pieces = together.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
