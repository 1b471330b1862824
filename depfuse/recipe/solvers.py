"""Settings of the solvers of the matching problem, with their kind of coupling and their capabilities.

The implementation is in the module that the class names; nothing here imports torch. A new solver is such a module and
a class here, or a class anywhere else that is passed to `add_solver`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import create_model

from depfuse.recipe.fields import Between, Choice, OneOf, Registry, setting
from depfuse.recipe.starts import STARTS, NoStart, Start, StartChoice

Masses = Literal["best", "whole", "equal", "free"]


class Solver(Choice):
    """Settings of a solver.

    Attributes
    ----------
    module
        Where its `SOLVER` is (see `depfuse.align.solvers.interface`).
    gives
        Permutations, transport plans, or linear maps of any sign.
    criteria
        The criteria that it serves.
    advice
        What to choose instead for other criteria.
    universe
        The criteria by which it can match each of many parents to the others' mean.
    watches
        Settings of a criterion by activations that it reads.
    needs_images
        Whether it reads calibration images whatever the criterion.
    folds
        Whether BatchNorm's scales are folded into the layers before it mixes channels.
    jointly
        Whether it changes all parents, the reference too, at their shares.
    """

    module: ClassVar[str]
    gives: ClassVar[Literal["permutation", "plan", "map"]] = "permutation"
    criteria: ClassVar[tuple[str, ...]] = ("activations", "weights", "mixture")
    advice: ClassVar[str] = ""
    universe: ClassVar[tuple[str, ...]] = ()
    watches: ClassVar[tuple[str, ...]] = ("distance", "taps")
    needs_images: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    jointly: ClassVar[bool] = False

    @property
    def start_from(self) -> Start:
        """Settings of its start; `NoStart` for solvers without one."""
        start = getattr(self, "start", None)
        return start if isinstance(start, Start) else NoStart()


class ByTransport(Solver):
    """A solver for equal widths; unequal ones are first made equal by exact transport."""

    masses: Masses = setting(
        "best",
        "parents of unequal widths: whole splits no channel of the wider one, equal gives all channels of a network "
        "one mass, free lets each of the wider one go where it fits best; best tries all, as with distances",
    )


class Emd(ByTransport):
    """Exact optimal transport: an assignment. By weights: sweeps over the groups, from several starts."""

    module: ClassVar[str] = "depfuse.align.solvers.emd"
    universe: ClassVar[tuple[str, ...]] = ("activations", "weights", "mixture")

    name: Literal["emd"] = "emd"
    restarts: int = setting(
        8,
        "local optima of a weight matching to choose from, at most; large networks get fewer",
        ge=1,
        search=Between(1, 8),
    )


class Sinkhorn(Solver):
    """Optimal transport with entropy: soft plans."""

    module: ClassVar[str] = "depfuse.align.solvers.sinkhorn"
    gives: ClassVar[Literal["permutation", "plan", "map"]] = "plan"

    name: Literal["sinkhorn"] = "sinkhorn"
    regularisation: float = setting(
        0.01,
        "weight of the entropy; the more, the more channels are averaged, the less is left of their weights, and the "
        "more the child is like the reference whatever the shares",
        unit="of the cost's scale",
        source="Cuturi 2013",
        gt=0.0,
        search=Between(0.001, 1.0, log=True),
    )


class Unbalanced(Solver):
    """Unbalanced transport: soft plans that may leave channels without a partner."""

    module: ClassVar[str] = "depfuse.align.solvers.unbalanced"
    gives: ClassVar[Literal["permutation", "plan", "map"]] = "plan"

    name: Literal["unbalanced"] = "unbalanced"
    strictness: float = setting(
        3.0,
        "how strictly masses are kept",
        unit="of the cost's scale",
        source="Chizat et al. 2018",
        gt=0.0,
        search=Between(0.1, 30.0, log=True),
    )


class Starting(ByTransport):
    """A solver with a choice of start."""

    start: StartChoice = setting(
        NoStart(),
        "what it starts from: activations is their assignment, a solver's name its result",
        search=OneOf(("none", "identity", "activations")),
    )


_ITERATIONS: dict[str, Any] = {"ge": 1, "search": Between(20, 200, log=True)}


class ByWeights(Solver):
    """A solver that compares weights, of all groups at once or with the others fixed."""

    criteria: ClassVar[tuple[str, ...]] = ("weights", "mixture")
    advice: ClassVar[str] = "matches weights: choose criterion weights or mixture"
    universe: ClassVar[tuple[str, ...]] = ("weights", "mixture")


class ByCovariances(ByTransport):
    """A solver that mixes channels by a linear map, from covariances of activations."""

    gives: ClassVar[Literal["permutation", "plan", "map"]] = "map"
    criteria: ClassVar[tuple[str, ...]] = ("activations",)
    advice: ClassVar[str] = "works on activations: leave out the criterion"
    watches: ClassVar[tuple[str, ...]] = ("taps",)


class CoordinateDescent(ByWeights, Starting):
    """Assignment of one group after another with all others held, in random orders (Git Re-Basin)."""

    module: ClassVar[str] = "depfuse.align.solvers.coordinate_descent"
    advice: ClassVar[str] = f"{ByWeights.advice}, or solver emd or sinkhorn"

    name: Literal["coordinate-descent"] = "coordinate-descent"
    restarts: int = setting(
        8, "local optima to choose from, at most; large networks get fewer", ge=1, search=Between(1, 8)
    )


class Spectral(ByWeights, ByTransport):
    """Graph matching by the principal eigenvector of the affinities (Leordeanu & Hebert 2005)."""

    module: ClassVar[str] = "depfuse.align.solvers.spectral"

    name: Literal["spectral"] = "spectral"
    iterations: int = setting(100, "limit of power iterations", **_ITERATIONS)


class ReweightedRandomWalk(ByWeights, ByTransport):
    """Graph matching by random walks with jumps (Cho et al. 2010)."""

    module: ClassVar[str] = "depfuse.align.solvers.reweighted_random_walk"

    name: Literal["reweighted-random-walk"] = "reweighted-random-walk"
    iterations: int = setting(100, "limit of steps of the walk", **_ITERATIONS)
    jumps: float = setting(
        0.2,
        "share of each step that jumps to where every channel has one partner",
        source="Cho et al. 2010",
        ge=0,
        le=1,
    )
    inflation: float = setting(
        30.0, "exponent of the strongest candidate's weight in a jump", source="Cho et al. 2010", gt=0.0
    )


class Ipfp(ByWeights, Starting):
    """Graph matching by integer projected fixed points (Leordeanu et al. 2009)."""

    module: ClassVar[str] = "depfuse.align.solvers.ipfp"

    name: Literal["ipfp"] = "ipfp"
    iterations: int = setting(100, "limit of projections", **_ITERATIONS)


class FrankWolfe(ByWeights, Starting):
    """Graph matching by conditional gradients over all groups at once (C2M3)."""

    module: ClassVar[str] = "depfuse.align.solvers.frank_wolfe"

    name: Literal["frank-wolfe"] = "frank-wolfe"
    iterations: int = setting(100, "limit of steps", source="Crisostomi et al. 2024", **_ITERATIONS)


class FusedGromov(ByTransport):
    """Fused Gromov-Wasserstein: channels and their correlations within each parent are matched together."""

    module: ClassVar[str] = "depfuse.align.solvers.fused_gromov"
    universe: ClassVar[tuple[str, ...]] = ("weights",)

    name: Literal["fused-gromov"] = "fused-gromov"
    structure: float = setting(
        0.5,
        "share of the correlations within each parent",
        source="Vayer et al. 2019",
        ge=0.0,
        le=1.0,
        search=Between(0.1, 0.9),
    )
    iterations: int = setting(100, "limit of steps of each group", **_ITERATIONS)


class SinkhornImplicit(Starting):
    """Descent of the loss on the way between the parents, through couplings made doubly stochastic."""

    module: ClassVar[str] = "depfuse.align.solvers.sinkhorn_implicit"
    criteria: ClassVar[tuple[str, ...]] = ("activations",)
    advice: ClassVar[str] = (
        "lowers a loss on images: choose criterion activations; its start may be another solver's result"
    )
    needs_images: ClassVar[bool] = True

    name: Literal["sinkhorn-implicit"] = "sinkhorn-implicit"
    iterations: int = setting(100, "steps of the descent", source="Peña et al. 2023", **_ITERATIONS)
    learning_rate: float = setting(0.02, "step of Adam on the logits of the couplings", gt=0.0)
    temperature: float = setting(
        0.1, "of the Sinkhorn operator: the lower, the nearer couplings are to permutations", unit="of logits", gt=0.0
    )


class Cca(ByCovariances):
    """Canonical correlation analysis: linear maps of any sign."""

    module: ClassVar[str] = "depfuse.align.solvers.cca"
    folds: ClassVar[bool] = True

    name: Literal["cca"] = "cca"
    regularisation: float = setting(
        0.01,
        "ridge of the covariances",
        unit="of the channels' mean variance",
        source="Horoi et al. 2024",
        gt=0.0,
        search=Between(0.1, 1000.0, log=True),
    )


class ZipIt(ByCovariances):
    """Pairs of correlated channels of all parents together, within parents too, merged one after another."""

    module: ClassVar[str] = "depfuse.align.solvers.zip_it"
    jointly: ClassVar[bool] = True

    name: Literal["zip-it"] = "zip-it"
    reuse: float = setting(
        0.3,
        "factor of the similarity of a zipped channel to further ones (alpha)",
        source="Stoica et al. 2024",
        ge=0.0,
        le=1.0,
    )
    within: float = setting(
        0.125,
        "share of a parent's zips that may join two of its own channels (beta)",
        source="Stoica et al. 2024",
        ge=0.0,
        le=1.0,
    )


class Identity(ByTransport):
    """Every channel stays where it is."""

    module: ClassVar[str] = "depfuse.align.solvers.identity"
    criteria: ClassVar[tuple[str, ...]] = ("weights",)
    advice: ClassVar[str] = (
        "compares nothing, so that there is nothing to measure: choose criterion weights, which needs no images"
    )
    watches: ClassVar[tuple[str, ...]] = ()

    name: Literal["identity"] = "identity"


SOLVERS = Registry()
_NOT_OF_A_START = ("masses", "restarts", "start")  # a start is one solution, for parents of one width


def add_solver(kind: type[Solver]) -> None:
    """Register a solver, and as a start of others where it gives permutations."""
    SOLVERS.add(kind)
    if kind.gives == "permutation":
        fields_of_start = {n: (f.annotation, f) for n, f in kind.model_fields.items() if n not in _NOT_OF_A_START}
        STARTS.add(create_model(f"{kind.__name__}Start", __base__=Start, __doc__=kind.__doc__, **fields_of_start))  # type: ignore[call-overload]


for _kind in (
    Emd, Sinkhorn, Unbalanced, CoordinateDescent, Spectral, ReweightedRandomWalk, Ipfp, FrankWolfe, FusedGromov,
    SinkhornImplicit, Cca, ZipIt, Identity,
):  # fmt: skip
    add_solver(_kind)


def solver_settings(name: str, **settings: Any) -> Solver:
    """Build a solver's settings; those that are not given have their defaults."""
    solver = SOLVERS({"name": name, **settings})
    assert isinstance(solver, Solver)
    return solver


def facts(name: str) -> type[Solver]:
    """Return the settings class of a solver."""
    kind = SOLVERS[name]
    assert issubclass(kind, Solver)
    return kind


def serving(criterion: str) -> tuple[str, ...]:
    """Return the names of the solvers that match by a criterion."""
    return tuple(name for name in SOLVERS if name != "identity" and criterion in facts(name).criteria)
