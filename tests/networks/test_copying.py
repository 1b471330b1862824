"""Copies of networks have containers of their own, those that are empty too."""

from __future__ import annotations

import torch
from torch import nn

from depfuse.networks.copying import evaluation_copy


class Keeping(nn.Module):
    """A network whose layers keep things in lists, of which two are one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.first.kept = self.second.kept = []  # type: ignore[assignment]
        self.by_name: dict[str, list[torch.Tensor]] = {}
        self.constants = {"deep": [torch.ones(2)]}


def test_containers_are_copied_once_and_share_nothing_with_the_networks() -> None:
    network = Keeping()
    copied = evaluation_copy(network)
    assert copied.first.kept is copied.second.kept
    assert copied.first.kept is not network.first.kept
    copied.first.kept.append(1)
    copied.by_name["a"] = []
    copied.constants["deep"][0].zero_()
    copied.first.register_forward_hook(lambda *_: None)
    copied.first.register_parameter("more", nn.Parameter(torch.zeros(1)))
    assert network.first.kept == []
    assert network.by_name == {}
    assert torch.equal(network.constants["deep"][0], torch.ones(2))
    assert not network.first._forward_hooks
    assert not copied.second._forward_hooks
    assert "more" not in dict(network.first.named_parameters())
    assert "more" not in dict(copied.second.named_parameters())
