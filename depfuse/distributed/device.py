"""Choice of the device."""

from __future__ import annotations

import torch

from depfuse.data.memory import free_memory
from depfuse.distributed import team as processes
from depfuse.errors import DeviceError
from depfuse.text import first_line


def resolve_device(name: str | None = None) -> torch.device:
    """Resolve a device's name to a device that is available.

    Parameters
    ----------
    name
        ``None`` or ``"auto"`` for CUDA where there is one and the CPU elsewhere; otherwise what
        `torch.device` takes, such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises
    ------
    DeviceError
        The name is no device, or the device is not available, or not one for each process.
    """
    device = _named(name)
    processes.check_device(device)
    return device


def free_memory_on(device: torch.device) -> int | None:
    """Return the free bytes of a device, torch's cache included; None where the device does not report them."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory() if device.type == "cpu" else None


def _named(name: str | None) -> torch.device:
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is no device: give cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError(f'{name} was asked for, but there is no usable CUDA device here: give `device="cpu"`')
        if device.index is not None and device.index >= count:
            raise DeviceError(f"{name} was asked for, but there are only {count} CUDA devices, cuda:0 first")
        return device
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each backend has its own way to say that it is not there
        raise DeviceError(
            f'{name} was asked for, but cannot be used here ({_short(error)}): give `device="cpu"`'
        ) from None
    return device


def _short(error: Exception) -> str:
    """Quote the first sentence of an error; what torch adds about its builds concerns nobody here."""
    return first_line(error).partition(". ")[0]
