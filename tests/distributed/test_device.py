from __future__ import annotations

import pytest
import torch

from depfuse.distributed.device import resolve_device
from depfuse.errors import DeviceError


@pytest.mark.parametrize("name", [None, "auto"])
def test_auto_is_cuda_where_there_is_one(name: str | None) -> None:
    assert resolve_device(name).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_named_device_is_that_device() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"cuda was asked for, but there is no usable CUDA device"):
        resolve_device("cuda")


def test_cuda_index_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="cuda:3 was asked for"):
        resolve_device("cuda:3")


def test_a_name_that_is_no_device_is_refused() -> None:
    with pytest.raises(DeviceError, match="'gpu' is no device"):
        resolve_device("gpu")
