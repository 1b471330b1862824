"""Output files: refused before any work starts, written whole and last."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from depfuse.errors import CheckpointError
from depfuse.io.atomic_files import check_writable

WEIGHTS = "model.safetensors"  # of a folder, as hubs name it
README = "README.md"  # of a folder: its model card
TAGS = "model-fusion, depfuse"  # in a model card that depfuse wrote, which may be written anew
PICKLED = (".pth", ".pt", ".ckpt")  # endings of what torch.save writes


def check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path] = ()) -> None:
    """Raise `CheckpointError` unless every output can be written, over no input and over no other output.

    Parameters
    ----------
    outputs : mapping of str to Path or None
        The caller's name of an output -> its path; None where it is not written.
    inputs : sequence of Path
        Files that must survive.
    """
    uses = {path.resolve(): "an input" for path in inputs}
    for name, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in uses:
            raise CheckpointError(f"{name} {path} would overwrite {uses[path.resolve()]}: choose another name")
        uses[path.resolve()] = f"what {name} writes"
        check_writable(path)


def check_weights_name(name: str, path: Path | None, *, child: bool = False) -> None:
    """Raise `CheckpointError` when weights would be written under a name that says something else than that.

    A `child` may also be written as a folder, or in the layout of its first parent's file.
    """
    if path is not None and path.suffix != ".safetensors" and not (child and (is_folder(path) or is_pickled(path))):
        endings = ", ".join(PICKLED)
        also = f", or in {endings} for the layout of the first parent, or be that of a folder" if child else ""
        raise CheckpointError(
            f"{name} {path}: weights are written as safetensors; the name must end in .safetensors{also}"
        )


def check_model_card(name: str, folder: Path) -> None:
    """Raise `CheckpointError` where a folder has a README.md that is no model card of depfuse's: it would be lost."""
    readme = folder / README
    if readme.is_file() and TAGS not in readme.read_text(encoding="utf-8", errors="replace"):
        raise CheckpointError(f"{name} {folder} has a {README} of its own, which would be lost: choose another folder")


def is_pickled(path: Path) -> bool:
    """Tell whether a network is written by torch.save, as other programs read it."""
    return path.suffix in PICKLED and not os.path.isdir(path)


def is_folder(path: Path) -> bool:
    """Tell whether a network is written as a folder: it is one, or has no ending, and not a file's."""
    return path.suffix != ".safetensors" and (os.path.isdir(path) or path.suffix == "")


def weights_in(path: Path) -> Path:
    """Return where the weights of a network are written: in the file, or in the folder."""
    return path / WEIGHTS if is_folder(path) else path
