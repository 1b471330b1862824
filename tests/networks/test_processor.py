"""Which processors multiply in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from depfuse.networks.processor import bfloat16_pays


@pytest.mark.parametrize(
    ("has", "capability", "amd", "pays"),
    [
        (["avx512_bf16", "amx_tile"], "AVX512", False, True),
        (["avx512_bf16"], "AVX512", True, True),
        (["avx512_bf16"], "AVX512", False, False),
        (["avx512_bf16", "amx_tile"], "AVX2", False, False),
        (["avx512_bf16"], "DEFAULT", True, False),
        ([], "AVX512", True, False),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_gains_by_it_and_torch_uses_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has: Sequence[str], capability: str, amd: bool, pays: bool
) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in has, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {'AuthenticAMD' if amd else 'GenuineIntel'}\n", encoding="utf-8")
    assert bfloat16_pays(torch.device("cpu"), tmp_path / "cpuinfo") is pays
