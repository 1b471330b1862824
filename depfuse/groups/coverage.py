"""Coverage: warn of what could not be followed or proved, or refuse it where it is most of the network."""

from __future__ import annotations

import warnings

from torch import nn

from depfuse.errors import DepfuseWarning, GroupError
from depfuse.groups import ChannelGroups, explain, not_followed
from depfuse.groups.reasons import CHOSEN, KERNEL, NOT_USED, PIXELS, SINGLE, TOUCHES_INPUT, TOUCHES_OUTPUT

LEAST_PROVED = 0.5  # of the parameters that reach the output: below it, an average is a guess
# Why a channel stays in its place in every network of that architecture.
IN_PLACE = frozenset({CHOSEN, TOUCHES_INPUT, TOUCHES_OUTPUT, NOT_USED, SINGLE, KERNEL, PIXELS})


def check_followed(model: nn.Module, groups: ChannelGroups, allow_fixed: bool | None, *, stacklevel: int = 3) -> None:
    """Warn of parts of the network that could not be followed or proved, or raise `GroupError`.

    Parameters
    ----------
    allow_fixed
        True: warn only. False: refuse whatever could not be followed. None: refuse where less than half of the
        parameters that reach the output are in proved groups, else warn.
    """
    name, allowed = type(model).__name__, "`align.allow_fixed=true`"
    left = not_followed(groups, IN_PLACE)
    used = [key for key in groups.parameters if groups.fixed_tensors.get(key) != NOT_USED]
    share = groups.share_covered(used)
    if allow_fixed is None and left and share < LEAST_PROVED:
        raise GroupError(
            f"only {share:.0%} of the parameters of {name} are in proved channel groups: {explain(left)}; to average "
            f"the rest position by position is a guess; allow that with {allowed}"
        )
    wrong = not_followed(groups)
    if not wrong:
        return
    fixed = f"a part of {name} stays fixed: {explain(wrong)}"
    if allow_fixed is False:
        raise GroupError(f"{fixed}; allow that with {allowed} to fuse the rest")
    warnings.warn(f"{fixed}; the rest, {share:.0%} of the parameters, is fused", DepfuseWarning, stacklevel=stacklevel)
