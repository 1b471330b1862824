"""Write the child of a fusion as a file with its card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from depfuse.data.preprocessing import Preprocessing
from depfuse.errors import ArchitectureError
from depfuse.evaluate import Agreement, Scores
from depfuse.io.cards import Card, Parent
from depfuse.io.checkpoint import state_digest, write_checkpoint
from depfuse.io.output_files import check_weights_name
from depfuse.models.registry import architecture_of, build_network
from depfuse.networks.copying import unwrap
from depfuse.networks.isolation import undisturbed

if TYPE_CHECKING:
    from depfuse.fusion.result import FusionResult

IN_MEMORY = "in memory"  # a parent that came from no file, as cards name it


def fusion_card(
    result: FusionResult,
    architecture: str,
    *,
    parents: Sequence[Parent],
    metrics: Mapping[str, Any],
    data: str | None = None,
    preprocessing: Preprocessing | None = None,
    names: tuple[str, ...] | None = None,
    widened: bool = False,
) -> Card:
    """Make the card of a child, or of a parent that was trained as long, with what the fusion knows."""
    labels = result.parent_labels
    return Card(
        architecture=architecture,
        data=data,
        preprocessing=preprocessing,
        classes=None if labels is None else labels.joint,
        names=names,
        widened=widened,
        recipe=result.recipe.model_dump(mode="json"),
        seeds={"fuse": result.recipe.seed},
        parents=tuple(parents),
        metrics=dict(metrics),
    )


def child_card(result: FusionResult, arch: str | None = None) -> Card:
    """Make the card of a child that was fused in memory.

    Parameters
    ----------
    arch
        What the network is, as `build_network` takes it. Where None, what a parent was built or loaded as, and else the
        place of its class, which a reader is told and does not import.

    Raises
    ------
    ArchitectureError
        What `arch` builds is another network.
    """
    loader, known = result.calibration, arch
    fits: bool | None = None
    if arch is not None:
        fits = _same_shapes(build_in_peace(arch), result.child)
        if fits is None or (not fits and result.partial_merge is None):
            raise ArchitectureError(f"{arch} is another network than the child: its tensors have other names or shapes")
    else:
        like = result.given_template or result.parents[result.like]
        known = architecture_of(like)
        fits = None if known is None else _same_shapes(build_in_peace(known), result.child)
        if known is None or fits is None:
            cls = type(unwrap(result.child))
            known, fits = f"{cls.__module__}:{cls.__name__}", True
    assert known is not None
    return fusion_card(
        result,
        known,
        parents=[Parent(path=IN_MEMORY, digest=state_digest(unwrap(own).state_dict())) for own in result.parents],
        metrics={} if result.compared is None else _metrics(result.compared.child),
        preprocessing=loader.preprocessing if loader is not None and loader.is_bytes else None,
        widened=not fits,
    )


def save(result: FusionResult, path: str | Path, arch: str | None = None) -> None:
    """Write the child's weights with their card as safetensors, all or nothing."""
    path = Path(path)
    check_weights_name("`path`", path)
    write_checkpoint(path, unwrap(result.child).state_dict(), child_card(result, arch))


@undisturbed()
def build_in_peace(arch: str) -> nn.Module:
    """Build a network without a change of the process's random numbers."""
    with torch.random.fork_rng(devices=[]):
        return build_network(arch)


def _same_shapes(built: nn.Module, child: nn.Module) -> bool | None:
    """Tell whether a network has the child's shapes; False where the child is wider, None where it is another one."""
    shapes, child_shapes = ({key: t.shape for key, t in unwrap(net).state_dict().items()} for net in (built, child))
    if shapes.keys() != child_shapes.keys() or any(len(shapes[key]) != len(child_shapes[key]) for key in child_shapes):
        return None
    if shapes == child_shapes:
        return True
    wider = all(
        first >= second for key in child_shapes for first, second in zip(child_shapes[key], shapes[key], strict=True)
    )
    return False if wider else None


def _metrics(scores: Scores | Agreement) -> dict[str, Any]:
    if isinstance(scores, Agreement):
        named = {"agreement": scores.ensemble, "confidence": scores.confidence, "ensemble_loss": scores.disagreement}
    else:
        measured = {scores.measure: scores.value, **scores.further}
        named = {measure.name.replace(" ", "_"): value for measure, value in measured.items()}
        named["loss"] = scores.loss
    finite = {name: value if math.isfinite(value) else None for name, value in named.items()}
    return {**finite, "images": scores.count}
