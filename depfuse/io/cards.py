"""Cards: metadata of a network beside its weights. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from depfuse.data.preprocessing import Preprocessing
from depfuse.errors import CheckpointError
from depfuse.io.stored import Stored
from depfuse.models.origin import FromFile

CARD_KEY = "depfuse_card"  # in the metadata of a safetensors file


class Parent(Stored):
    """A network that another one was made from."""

    path: str
    digest: str


class Card(Stored):
    """Metadata of a network beside its weights.

    Attributes
    ----------
    architecture
        As `depfuse.models.build_network` takes it; it comes from a file, so nothing that it names is imported.
    data
        The data set it was trained or calibrated on, as `depfuse.data.load_data` takes it. A path that it names is not
        opened unless the user asks for it.
    preprocessing
        How its inputs were normalised.
    classes
        For each output, the label of the data set that it stands for; ``None`` where unknown.
    names
        For each output, what its class is called; ``None`` where unknown.
    recipe
        The settings of the fusion or of the training that made it.
    seeds
        Purpose -> seed.
    parents
        The networks it was fused from.
    metrics
        Its scores; accuracies are fractions.
    versions
        Of the libraries that made it; set by `write_checkpoint`.
    widened
        Whether layers have more channels than the architecture, since some of the parents' channels are side by side.
    tensors
        Digest of the tensors that the card belongs to; set by `write_checkpoint`.
    """

    architecture: Annotated[str, AfterValidator(FromFile)]
    data: str | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    recipe: dict[str, Any] | None = None
    seeds: dict[str, int] = Field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    widened: bool = False
    tensors: str | None = None


def card_of(path: Path, metadata: Mapping[str, str]) -> Card | None:
    """Read the card in the metadata of a safetensors file; None where there is none.

    Raises
    ------
    CheckpointError
        It is no card, or a field has a wrong value.
    """
    if CARD_KEY not in metadata:
        return None
    try:
        return Card.model_validate_json(metadata[CARD_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{path}: its card cannot be read: {where}: {reason}") from None
