"""Write the child of a fusion as a folder, as hubs have it, that the library of its parents loads."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from depfuse.errors import CheckpointError
from depfuse.fusion.class_names import class_names, name_outputs
from depfuse.fusion.saving import IN_MEMORY, child_card
from depfuse.io.atomic_files import replacing_files
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.io.hub_folders import CONFIG, OF_IMAGES, PREPROCESSOR
from depfuse.io.output_files import README, TAGS, WEIGHTS, check_model_card
from depfuse.networks.copying import unwrap

if TYPE_CHECKING:
    from depfuse.fusion.result import FusionResult

_DIGITS = 12  # of a digest
_OF_OTHER_WEIGHTS = ("license", "tag", "paper_ids", "paper_name", "origin_url", "notes")  # in timm's configuration


def save_pretrained(
    result: FusionResult, folder: str | Path, arch: str | None = None, card: Card | None = None
) -> None:
    """Write the child as a folder of weights, configuration and model card; files appear in it only once complete.

    A network that has a method `save_pretrained` writes itself, one of timm's is written as `timm` does; any other gets
    `config.json` and `model.safetensors` with the card. Names of classes are those of the parents, all of them; what
    prepares images (`preprocessor_config.json`) is copied from the parent whose channels the child has, or from the
    first that has one.

    Parameters
    ----------
    result
        The fusion.
    folder
        Where it is written.
    arch
        See `child_card`.
    card
        What is known of the child; made where None.

    Raises
    ------
    CheckpointError
        The folder cannot be written, or the child is wider than its library would build it.
    """
    child, like, folder = unwrap(result.child), unwrap(result.parents[result.like]), Path(folder)
    check_model_card("the folder", folder)
    card = card or child_card(result, arch)
    names = card.names or class_names(result)
    own: Callable[[str], object] | None = getattr(child, "save_pretrained", None)
    of_timm = type(child).__module__.startswith("timm.") and hasattr(child, "pretrained_cfg")
    if (callable(own) or of_timm) and (card.widened or result.partial_merge is not None):
        raise CheckpointError(
            f"{folder} would hold a child wider than its library builds it: keep no channels unmerged, or give a file"
            " that ends in .safetensors"
        )
    with replacing_files(folder, last=WEIGHTS) as temporary:
        if callable(own):
            if names is not None:
                name_outputs(child, names)
            with _without_bars():
                own(str(temporary))
        elif of_timm:
            _write_by_timm(child, like, temporary, names)
        else:
            write_checkpoint(temporary / WEIGHTS, child.state_dict(), card)
            config = {"architectures": [type(child).__name__], "depfuse": card.model_dump(mode="json")}
            (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if (described := _preprocessor(like, result.parents)) is not None:
            shutil.copyfile(described, temporary / PREPROCESSOR)
        if not (temporary / README).exists():
            (temporary / README).write_text(model_card(result.written(folder), card), encoding="utf-8")


def folder_of(network: nn.Module) -> Path | None:
    """Find the folder that a network of transformers was loaded from, None where it is not here."""
    place = getattr(getattr(network, "config", None), "_name_or_path", None)
    return Path(place) if isinstance(place, str) and place and Path(place).is_dir() else None


def _preprocessor(like: nn.Module, parents: Sequence[nn.Module]) -> Path | None:
    """Find the file that says how a parent's images are prepared."""
    folders = [folder_of(unwrap(parent)) for parent in (like, *parents)]
    files = [folder / PREPROCESSOR for folder in folders if folder is not None]
    return next((file for file in files if file.is_file()), None)


def model_card(result: FusionResult, card: Card) -> str:
    """Write a model card: what was fused, how, what it is worth where that was measured, and whose work it is."""
    kind = type(unwrap(result.child))
    library = next((own for own in ("transformers", "timm") if kind.__module__.startswith(f"{own}.")), None)
    classifies = "ForImageClassification" in kind.__name__ or library == "timm"
    lines = [
        "---",
        *([f"library_name: {library}"] if library else []),
        *(["pipeline_tag: image-classification"] if classifies else []),
        f"tags: [{TAGS}]",
        "---",
        f"# {kind.__name__}, fused from {len(result.parents)} parents",
        "",
        "Made by depfuse: channels of the parents were matched group by group, and their weights merged.",
        "",
        "## Parents",
        "",
        *(f"- {_parent(own.path)}, SHA-256 of its tensors `{own.digest[:_DIGITS]}`" for own in card.parents),
        "",
        "## Scores",
        "",
        *_scores(card.metrics),
        "",
        "```text",
        repr(result),
        "```",
        "",
        "## Licence",
        "",
        "The weights derive from the parents above and, as these do, from their data. Name the licence of this network"
        " here, and check first that the parents' licences allow it.",
        "",
        "## Recipe",
        "",
        "```json",
        result.recipe.model_dump_json(indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _parent(path: str) -> str:
    return "a network in memory" if path == IN_MEMORY else f"`{path}`"


def _scores(metrics: Mapping[str, Any]) -> Sequence[str]:
    """List the child's scores."""
    known = [f"- {name.replace('_', ' ')}: {_number(value)}" for name, value in metrics.items() if value is not None]
    return known or ["None was measured."]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_by_timm(child: Any, like: Any, folder: Path, names: Sequence[str] | None) -> None:
    """Write a network of timm as timm does, with the pre-processing of a parent."""
    from timm.models import save_for_hf

    described = getattr(like, "pretrained_cfg", None) or {}
    child.pretrained_cfg = {key: value for key, value in child.pretrained_cfg.items() if key not in _OF_OTHER_WEIGHTS}
    config: dict[str, Any] = {"pretrained_cfg": {key: described[key] for key in OF_IMAGES if key in described}}
    if names is not None and len(names) == child.num_classes:
        config["label_names"] = list(names)
    save_for_hf(child, str(folder), model_config=config, safe_serialization=True)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence the progress bars of transformers, which show the writing of one file."""
    logging = sys.modules.get("transformers.utils.logging")
    if logging is None or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
