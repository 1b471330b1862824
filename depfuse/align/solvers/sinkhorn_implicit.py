"""Differentiable matching: couplings that lower a loss along the path between the parents (Pena et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution, at_limit
from depfuse.align.solvers.interface import Implementation
from depfuse.align.solvers.rounding import QUICKER, assign
from depfuse.align.solvers.start import start_of
from depfuse.align.transport import checked
from depfuse.groups.nesting import Orbit, Part
from depfuse.networks.forward import run_network, run_with
from depfuse.networks.memory_format import differentiable
from depfuse.networks.real_state import as_stored
from depfuse.networks.running import evaluating
from depfuse.networks.stopwatch import Stopwatch, seconds_of_pass
from depfuse.progress import work
from depfuse.recipe.solvers import SinkhornImplicit
from depfuse.tasks.outputs import task_by_shape

State = dict[str, Tensor]
START = 0.5  # logit of the start's pairs above all others: small enough for gradients to move them
SINKHORN_STEPS = 200  # limit of alternations; they stop where row sums are exact to 1e-9
BATCH = 100  # images per step
HELD = 4  # batches that permutations are compared on
COMPARED = 10  # times that they are, after the start
TIMED = 10  # images that a network is timed on
TYPICAL_STEPS = 100  # alternations; measured are means of 35 (512 channels) to 194 (20 channels)
SOLVED = 4 / 3  # products of two square matrices as long as building and solving one linear system


class Sinkhorn(torch.autograd.Function):
    r"""Doubly stochastic :math:`P_{ij} = \exp(L_{ij} + a_i + b_j)`, differentiated at convergence.

    At convergence, small changes of L keep row and column sums at one. With G the gradient with respect to P, that with
    respect to L is :math:`P_{ij} (G_{ij} - \alpha_i - \beta_j)`, where :math:`\alpha + P \beta` and
    :math:`P^T \alpha + \beta` are the row and column sums of P G: one linear system instead of a record of all steps
    (Eisenberger et al. 2022, section 3).
    """

    @staticmethod
    def forward(context: Any, logits: Tensor) -> Tensor:
        """Alternate rows and columns until both sum to one."""
        log_plan = logits.double()
        for _ in range(SINKHORN_STEPS):
            log_plan = log_plan - torch.logsumexp(log_plan, 1, keepdim=True)
            log_plan = log_plan - torch.logsumexp(log_plan, 0, keepdim=True)
            if float((log_plan.exp().sum(1) - 1.0).abs().max()) < 1e-9:
                break
        plan = log_plan.exp()
        context.save_for_backward(plan)
        return plan.to(logits.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Solve for the multipliers of the row and column sums."""
        (plan,) = context.saved_tensors
        weighted = plan * gradients[0].double()
        rows, columns = weighted.sum(1), weighted.sum(0)
        size = len(plan)
        # A constant may go from alpha to beta without effect: the system is singular by that, and by no more.
        system = torch.eye(size, dtype=plan.dtype, device=plan.device) - plan.T @ plan + 1.0 / size
        beta = torch.linalg.solve(system, columns - plan.T @ rows)
        alpha = rows - plan @ beta
        gradient: Tensor = weighted - plan * (alpha[:, None] + beta[None, :])
        return gradient.to(gradients[0].dtype)


def doubly_stochastic(logits: Tensor, temperature: float) -> Tensor:
    """Scale exp(logits / temperature) to row and column sums of one, see `Sinkhorn`."""
    plan: Tensor = Sinkhorn.apply(logits / temperature)
    return plan


def _moved(tensor: Tensor, part: Part, plan: Tensor) -> Tensor:
    """Mix a part's channels of a tensor by a plan (n, n)."""
    index = part.index[0].to(tensor.device)
    taken = tensor.index_select(part.axis, index.reshape(-1)).movedim(part.axis, 0)
    mixed = torch.tensordot(plan, taken.reshape(*index.shape, *taken.shape[1:]), dims=1)
    columns = mixed.reshape(taken.shape).movedim(0, part.axis)
    result: Tensor = tensor.index_copy(part.axis, index.reshape(-1), columns)
    return result


def _batches(problem: MatchingProblem) -> Iterator[Tensor]:
    assert problem.calibration is not None
    while True:
        yield from (images for images, _ in problem.calibration.in_batches(BATCH))


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match by gradient descent, from the recipe's start or the assignment by activations.

    Each step draws a share t and moves the logits of all couplings against the gradient of the loss of the network
    (1 - t) A + t P(B) on a batch: its cross-entropy to the mean of the parents' class probabilities, since no labels
    are read. BatchNorm layers normalise by the batch. At regular steps the couplings are rounded to permutations; those
    with the lowest loss halfway are the result. Groups in blocks, and blocks, keep their start.
    """
    settings = problem.settings_of(SinkhornImplicit)
    iterations = settings.iterations
    start = start_of(problem, "activations")
    assert start is not None
    placed = problem.placements(start.couplings)
    plain = [root for root in problem.roots if not root.children and all(p.within is None for p in root.parts)]
    if not plain:
        return [Solution(problem.couplings(placed), start.not_converged)]
    descent = Descent(SharedCosts(problem), {r.name: placed[r.name] for r in problem.roots if r not in plain})
    source: State = {**problem.source, **{key: descent.state[key] for key in descent.state}}
    run = _Path(problem, plain, source)
    with torch.enable_grad():
        logits = {
            root.name: (START * torch.eye(root.size, dtype=torch.float32)[placed[root.name][root.name]])
            .to(run.device)
            .requires_grad_()
            for root in plain
        }
    optimiser = torch.optim.Adam(list(logits.values()), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(problem.seed)
    batches = _batches(problem)
    held = [next(batches) for _ in range(HELD)]
    best: tuple[float, dict[str, Tensor]] | None = None
    every = max(1, iterations // COMPARED)
    improved_at = 0

    def cost() -> float:
        return run.seconds({name: value.detach() for name, value in logits.items()}, held[0], iterations)

    for step in work().track(range(iterations + 1), "descending on couplings", QUICKER, cost):
        if step % every == 0 or step == iterations:
            orders = assign({name: value.detach() for name, value in logits.items()})
            with torch.no_grad():
                plans = {n: torch.eye(len(o), dtype=torch.float32)[o].to(run.device) for n, o in orders.items()}
                held_loss = sum(float(run.loss(plans, images, 0.5)) for images in held) / len(held)
            if best is None or held_loss < best[0]:
                best, improved_at = (held_loss, orders), step
        if step < iterations:
            share = float(torch.rand((), generator=generator, dtype=torch.float32))
            with torch.enable_grad():
                plans = {n: doubly_stochastic(v, settings.temperature) for n, v in logits.items()}
                loss = run.loss(plans, next(batches), share)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    assert best is not None
    improves = iterations - improved_at < every and iterations > every
    not_converged = start.not_converged + at_limit("sinkhorn-implicit", iterations, unless=not improves)
    rounded = {name: {name: order} for name, order in best[1].items()}
    return [Solution(problem.couplings({**placed, **rounded}), not_converged)]


class _Path:
    """Networks between the parents, as functions of the couplings."""

    def __init__(self, problem: MatchingProblem, plain: list[Orbit], source: State) -> None:
        self.networks = problem.networks
        self.target, self.source, self.weights = problem.target, source, problem.weights
        self.parts = [(root.name, part) for root in plain for part in problem.parts(root)]
        self.between = copy.deepcopy(problem.networks[0]).eval()
        for module in self.between.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.train()
        for parameter in self.between.parameters():
            parameter.requires_grad_(False)
        self.device = next(iter(self.target.values())).device

    def loss(self, plans: dict[str, Tensor], images: Tensor, share: float) -> Tensor:
        """Compute the distance of the network at `share` from its parents' ensemble."""
        moved = dict(self.source)
        for name, part in self.parts:
            moved[part.key] = _moved(moved[part.key], part, plans[name].to(moved[part.key].dtype))
        state = {
            key: torch.lerp(tensor, moved[key], share) if key in self.weights else tensor.clone()
            for key, tensor in self.target.items()
        }
        with torch.no_grad(), evaluating(*self.networks):
            outputs = [run_network(network, images) for network in self.networks]
            wanted = task_by_shape(outputs[0]).mean(outputs, (0.5, 0.5))
        with differentiable(self.device):
            logits = run_with(self.between, as_stored(state, self.between), images)
        loss = task_by_shape(logits).losses(logits, wanted).mean()
        checked(loss.detach())
        return loss

    def seconds(self, logits: Mapping[str, Tensor], images: Tensor, iterations: int) -> float:
        """Estimate the seconds of a descent from a product and an alternation of each size, and a pass of a network.

        Parameters
        ----------
        logits
            Group name -> (n, n), of which plans are made in float64, by as many alternations as is typical: how many
            they take is not known before, and may be a third or twice that.
        images
            A batch, of which `TIMED` images are run.
        iterations
            Steps of the descent.
        """
        watch = Stopwatch(self.device)
        step = 0.0
        for name, value in logits.items():
            plan = value.double()
            product = watch.seconds(torch.mm, plan.T, plan)
            scaling = watch.seconds(_row_sums_of_one, plan)
            columns = sum(self.target[part.key].numel() / len(plan) for group, part in self.parts if group == name)
            # What is moved, and its gradient, are products in float32, which take half as long each.
            step += 2 * TYPICAL_STEPS * scaling + (SOLVED + columns / len(plan)) * product
        few = images[:TIMED]
        one = seconds_of_pass(self.networks[0], [(few, None)]) * len(images) / len(few)
        # Passes of the parents, and of the network between them, of which a backward pass takes as long as two.
        passes = iterations * (len(self.networks) + 3) + (COMPARED + 1) * HELD * (len(self.networks) + 1)
        return iterations * step + passes * one


def _row_sums_of_one(log_plan: Tensor) -> Tensor:
    return log_plan - torch.logsumexp(log_plan, 1, keepdim=True)


SOLVER = Implementation(solve)
