"""See which channels must move together.

    python -m experiments.gallery.step2_see_groups

Shows what depfuse finds out from a network before it touches a weight: its channel groups, here of a residual network
with two blocks, and the proof that permuting them changes nothing. In the picture a colour is a group. The first group
is a residual stream: the first convolution, the first block and the second block's shortcut all carry its channels, so
they can only be permuted together.

Reached: 4 free groups with 96 channels, in which 99.9 % of the parameters lie; largest relative change of the output
under random permutations of all of them 4e-16, in float64.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich import print as show

from depfuse import ChannelGroups, find_groups, prove_groups
from depfuse.models import build_network
from depfuse.report.channel_map import draw_channels
from depfuse.report.group_tree import group_tree, summary_line
from experiments.gallery.digits import data


def main(picture: Path) -> ChannelGroups:
    torch.manual_seed(0)
    network = build_network("digits_resnet").eval()  # any nn.Module will do
    example = data.example()
    groups = prove_groups(network, find_groups(network, example), example)

    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    show(group_tree("digits_resnet", groups, shapes))
    print(summary_line(groups))
    draw_channels("digits_resnet", network, example, groups, picture)
    return groups


if __name__ == "__main__":
    torch.set_num_threads(1)  # as for the figures above
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
