"""Which numbers a processor multiplies fastest."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def bfloat16_pays(device: torch.device, listed: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether a device multiplies bfloat16 faster than float32.

    A CPU does with tile matrices (AMX), and one of AMD's with AVX512-BF16. One of Intel's with AVX512-BF16 alone does
    no more multiply-adds a cycle than in float32, and converts besides: a ResNet20 is refitted in 1.5 times the time.
    Without instructions for it a CPU converts back and forth; so does one that has them where torch is told to do
    without (`ATEN_CPU_CAPABILITY`).

    Parameters
    ----------
    device
        On which one computes.
    listed
        Where Linux lists processors.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return _has("amx_tile") or (_has("avx512_bf16") and _made_by_amd(listed))


def _has(instructions: str) -> bool:
    """Tell whether the CPU has instructions, by torch; of a release of torch that does not tell, no."""
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", lambda: False)())


def _made_by_amd(listed: Path) -> bool:
    """Tell whether AMD made the CPU, as Linux or Windows say."""
    told = listed.read_text(encoding="utf-8", errors="replace") if listed.is_file() else platform.processor()
    return "AuthenticAMD" in told
