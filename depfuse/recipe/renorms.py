"""Settings of the renormalisations, with the function of each and what it reads. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from depfuse.recipe.fields import Choice, Registry


class Renorm(Choice):
    """How what averaging does to the signal is undone.

    Attributes
    ----------
    place
        `module:function`, called with the child; with its `AlignedParents` if `parents`; with the
        calibration images if `images`, else an example input; and with names of layers to leave alone if `keeps`.
    images
        Whether it reads calibration images.
    parents
        Whether it compares the child with its parents.
    keeps
        Whether it can leave layers alone.
    """

    place: ClassVar[str] = ""
    images: ClassVar[bool] = False
    parents: ClassVar[bool] = False
    keeps: ClassVar[bool] = False


class AutoRenorm(Renorm):
    """Reset where the network has BatchNorm, none elsewhere and after refit ridge, which sets the statistics."""

    images: ClassVar[bool] = True

    name: Literal["auto"] = "auto"


class NoRenorm(Renorm):
    """The averaged statistics stay as they are."""

    name: Literal["none"] = "none"


class Reset(Renorm):
    """BatchNorm statistics of the calibration images."""

    place: ClassVar[str] = "depfuse.renorm.reset:reset_batch_norm"
    images: ClassVar[bool] = True
    keeps: ClassVar[bool] = True

    name: Literal["reset"] = "reset"


class Repair(Renorm):
    """The parents' means and deviations for every layer, with BatchNorm or without (Jordan et al. 2023)."""

    place: ClassVar[str] = "depfuse.renorm.repair:repair"
    images: ClassVar[bool] = True
    parents: ClassVar[bool] = True

    name: Literal["repair"] = "repair"


class Rescale(Repair):
    """The parents' deviations only."""

    place: ClassVar[str] = "depfuse.renorm.repair:rescale"

    name: Literal["rescale"] = "rescale"  # type: ignore[assignment]


class DataFree(Renorm):
    """Deviations estimated from the weights alone."""

    place: ClassVar[str] = "depfuse.renorm.data_free:rescale_by_norms"
    parents: ClassVar[bool] = True

    name: Literal["data-free"] = "data-free"


RENORMS = Registry(AutoRenorm, NoRenorm, Reset, Repair, Rescale, DataFree)


def renorm_facts(name: str) -> type[Renorm]:
    """Return the settings class of a renorm."""
    kind = RENORMS[name]
    assert issubclass(kind, Renorm)
    return kind


def renorms_of(refit: str) -> tuple[str, tuple[str, ...]]:
    """Return which renorms are searched after a refit: `auto` resets, and after some only statistics are renewed."""
    kinds = [RENORMS[name] for name in RENORMS if name not in ("none", "reset")]
    if refit in ("auto", "none"):
        return "", tuple(kind.called() for kind in kinds)
    renewing = tuple(kind.called() for kind in kinds if issubclass(kind, Renorm) and kind.images)
    return "refitted", renewing if refit in ("regmean", "least-squares") else ()
