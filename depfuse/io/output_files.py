"""Output files: refused before any work starts, written whole and last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from depfuse.errors import CheckpointError
from depfuse.io.atomic_files import check_writable


def check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path] = ()) -> None:
    """Raise `CheckpointError` unless every output can be written, over no input and over no other output.

    Parameters
    ----------
    outputs : mapping of str to Path or None
        The caller's name of an output -> its path; None where it is not written.
    inputs : sequence of Path
        Files that must survive.
    """
    taken = {path.resolve(): "an input" for path in inputs}
    for name, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise CheckpointError(f"{name} {path} would overwrite {taken[path.resolve()]}: choose another name")
        taken[path.resolve()] = f"what {name} writes"
        check_writable(path)


def check_weights_name(name: str, path: Path | None) -> None:
    """Raise `CheckpointError` when weights would be written under a name that says something else."""
    if path is not None and path.suffix != ".safetensors":
        raise CheckpointError(f"{name} {path}: weights are written as safetensors; the name must end in .safetensors")
