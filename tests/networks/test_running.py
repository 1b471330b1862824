"""Running of networks: where bfloat16 is chosen."""

from __future__ import annotations

import pytest
import torch

from depfuse.networks.running import bfloat16_pays


@pytest.mark.parametrize(
    ("instructions", "capability", "pays"),
    [(True, "AVX512", True), (True, "AVX2", False), (True, "DEFAULT", False), (False, "AVX512", False)],
)
def test_bfloat16_is_chosen_where_the_processor_has_it_and_torch_uses_it(
    monkeypatch: pytest.MonkeyPatch, instructions: bool, capability: str, pays: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert bfloat16_pays(torch.device("cpu")) is pays
