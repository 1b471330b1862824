"""Names of devices, checked without torch."""

from __future__ import annotations

import re

from depfuse.errors import DeviceError

_FORM = re.compile(r"[a-z][a-z0-9_]*(:\d{1,4})?")
_MISTAKEN = ("gpu", "nvidia")  # what devices of CUDA are called elsewhere


def check_device_name(name: str | None) -> None:
    """Raise `DeviceError` where no device can have this name; whether it is there, torch knows."""
    if name is None or (_FORM.fullmatch(name) and name.partition(":")[0] not in _MISTAKEN):
        return
    raise DeviceError(f"{name!r} is no device: give cpu, cuda, cuda:N or auto")
