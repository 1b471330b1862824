"""Which processors multiply in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from depfuse.networks import processor


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
    monkeypatch: pytest.MonkeyPatch, has: Sequence[str], capability: str, amd: bool, pays: bool
) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in has, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(processor, "_made_by_amd", lambda: amd)
    assert processor.bfloat16_pays(torch.device("cpu")) is pays


def test_the_maker_is_told_as_the_system_tells_it() -> None:
    listed = processor.Path("/proc/cpuinfo")
    if not listed.is_file():
        pytest.skip("no Linux")
    assert processor._made_by_amd() is any("AuthenticAMD" in line for line in listed.read_text().splitlines())
