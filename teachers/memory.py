"""What a teacher has needed of its device."""


def device_peak(device: str) -> int:
    """The most bytes that this process has held of the device's own memory; 0 for the CPU, which has none of its own."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.max_memory_allocated(torch.device(device))
