"""What the tests of several processes have them do: by `torchrun`, and in one process to compare with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from digits_parents import digits_files, digits_parents
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.pairwise import PairwiseCollector
from depfuse.cli import main as depfuse
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.distributed import team as processes
from depfuse.errors import DataError, DepfuseWarning
from depfuse.groups import find_groups
from depfuse.models import build_network
from depfuse.renorm import reset_batch_norm, reset_keeping_function
from depfuse.train import TrainRecipe, train

Found = dict[str, Tensor]

FUSION = ["fuse", *digits_files("a", "b"), "--data", "digits", "--calibration", "450", "--refit", "none"]

USERS_FILE = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)
        self.relu = lambda x: torch.relu(x)

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.head(self.relu(self.second(x) + x).mean((2, 3)))
"""


class StoppedError(Exception):
    """A training was cut off."""


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a module or a file in several processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def images(count: int = 225, batch_size: int = 50) -> Loader:
    """Five batches of 45, of which one process gets three."""
    return calibration_loader(load_data("digits"), count, batch_size=batch_size)


def fused(*names: str, **settings: Any) -> Found:
    recipe = Recipe.create(**settings) if settings else Recipe()
    result = fuse(digits_parents(*names), recipe, images())
    found = dict(result.child.state_dict())
    for number, couplings in enumerate(result.couplings):
        for name, coupling in couplings.items():
            kinds = (coupling.permutation, coupling.plan, coupling.maps and coupling.maps.produces)
            found[f"coupling {number} {name}"] = next(kind for kind in kinds if kind is not None)
    return found


def moments() -> Found:
    parents = digits_parents("a", "b")
    groups = find_groups(parents[0], torch.zeros(1, 1, 8, 8))
    (found,) = collect_moments(parents, groups, images(), "both")
    return {
        f"{name} {number} {key}": torch.as_tensor(value)
        for name, taps in found.items()
        for number, own in enumerate(taps)
        for key, value in vars(own).items()
    }


def of_many_parents() -> Found:
    parents = digits_parents("a", "b", "same-a", "same-b")
    collector = PairwiseCollector(parents, find_groups(parents[0], torch.zeros(1, 1, 8, 8)), images(), "after")
    names = collector.modules
    pairs = collector.among([0, 1])
    places = {name: torch.arange(len(pairs.pair(name, 0, 1, "cosine"))) for name in names}
    with_others = collector.among_and_others([0, 1], {2: places, 3: places}, (0.1, 0.2, 0.3, 0.4), "scaled")
    found = {f"{name} pair": pairs.pair(name, 0, 1, "pearson") for name in names}
    for parent, own in with_others.others.items():
        found |= {f"{name} of {parent}": similarity for name, similarity in own.items()}
    return found


def renewed(change: Callable[[nn.Module, Loader], None], loader: Loader) -> Found:
    (network,) = digits_parents("a")
    change(network, loader)
    return dict(network.state_dict())


def users_network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(f"{sys.argv[-1]}:Plain")


def of_a_users_network() -> Found:
    network = users_network()
    groups = find_groups(network, torch.zeros(1, 1, 8, 8))
    (found,) = collect_moments([network, users_network()], groups, images(), "after")
    return {name: taps[0].product for name, taps in found.items()}


def trained(folder: Path | None = None, stop: int | None = None) -> Found:
    """A network without BatchNorm, which no split of a batch can change but by rounding."""
    data = load_data("digits")
    few = DataSet(data.name, data.classes, data.train.take(torch.arange(330)), data.test, data.preprocessing)
    recipe = TrainRecipe.create(epochs=3, batch_size=65, learning_rate=0.05, warmup=1.0)
    state = None if folder is None else folder / "state"

    def progress(report: Any) -> None:
        if report.epoch == stop:
            raise StoppedError

    model = users_network()
    metrics = train(model, few, recipe, resume_path=state, progress=progress, save_seconds=0.0)
    return {**model.state_dict(), "loss": torch.tensor(metrics["train_loss"])}


def resumed(folder: Path) -> Found:
    with contextlib.suppress(StoppedError):
        trained(folder, stop=2)
    return trained(folder)


CASES: dict[str, Callable[[], Found]] = {
    "moments": moments,
    "many parents": of_many_parents,
    "a fusion": lambda: fused("a", "b", refit="none"),
    "cca": lambda: fused("a", "b", solver="cca", refit="none"),
    "repair": lambda: fused("a", "b", renorm="repair", refit="none"),
    "augmented statistics": lambda: fused("a", "b", augment_statistics=True, refit="none"),
    "channels apart": lambda: fused("a", "b", keep_worst=0.2, refit="none"),
    "reset": lambda: renewed(reset_batch_norm, images()),
    "settle": lambda: renewed(reset_keeping_function, images()),
    "one batch for all": lambda: renewed(reset_batch_norm, images(batch_size=225)),
    "a network of the user's": of_a_users_network,
    "training": trained,
}


def _who(loader: Loader) -> tuple[Tensor, list[Tensor]]:
    """Process -> number of images that it saw."""
    seen = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    for batch, _ in loader:
        seen[dist.get_rank()] += len(batch)
    return seen, [seen]


def _fails(loader: Loader, rank: int, error: Exception) -> tuple[None, list[Tensor]]:
    if dist.get_rank() == rank:
        raise error
    return None, [torch.zeros(3)]


def _said(function: Callable[[], object]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _holding_a_lock(network: nn.Module) -> nn.Module:
    network.lock = threading.Lock()
    return network


def only_for_many(folder: Path) -> dict[str, Any]:
    """What there is to see only where there are several processes."""
    loader = images()
    error = DataError("no")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        alone = _holding_a_lock(digits_parents("a")[0])
        reset_batch_norm(alone, loader)
    (folder / "state").write_bytes(b"nothing")
    wrong = _said(lambda: trained(folder))
    (folder / "state").unlink()
    return {
        "seen": processes.all_sum(_who, loader),
        "seen of one batch": processes.all_sum(_who, images(batch_size=225)),
        "alone": dict(alone.state_dict()),
        "warned": [str(own.message) for own in warned if issubclass(own.category, DepfuseWarning)],
        "failures": {
            "helper": _said(lambda: processes.all_sum(_fails, loader, 1, error)),
            "first": _said(lambda: processes.all_sum(_fails, loader, 0, error)),
            "unexpected": _said(lambda: processes.all_sum(_fails, loader, 1, KeyError("x"))),
            "state": wrong,
            "batch": _said(lambda: train(users_network(), load_data("digits"), TrainRecipe.create(batch_size=3))),
            "diverged": _said(
                lambda: train(users_network(), load_data("digits"), TrainRecipe.create(epochs=1, learning_rate=1e30))
            ),
        },
        "resumed": resumed(folder),
        "count": processes.count(),
    }


def _dies(loader: Loader, rank: int, after: float) -> tuple[None, list[Tensor]]:
    if dist.get_rank() == rank:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if after == 0.0:
            time.sleep(60)
    return None, [torch.zeros(3)]


def dying(rank: int, after: float) -> int:
    """Let a process die, in the middle of shared work or while the first one does something else."""
    processes.all_sum(_dies, images(), rank, after)
    time.sleep(600)
    return 0


def cases() -> dict[str, Found]:
    torch.set_num_threads(1)
    found = {}
    for name, case in CASES.items():
        started = time.perf_counter()
        found[name] = case()
        print(f"{time.perf_counter() - started:6.2f} s  {name}")
    return found


def main(out: Path) -> int:
    torch.save({"cases": cases(), **only_for_many(out.parent)}, out)
    return 0


def command_first(out: Path) -> int:
    """Run a fusion by the command line, which makes the team, and then the cases: what is started twice costs twice."""
    launch, folder = processes.launch, out.parent / "command"
    processes.launch = lambda command: launch(lambda: command() or main(out))
    files = ["--out", str(folder / "child.safetensors"), "--report", str(folder / "report.json")]
    return depfuse([*FUSION, *files])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "die":
        sys.exit(processes.launch(lambda: dying(int(sys.argv[2]), float(sys.argv[3]))))
    sys.exit(command_first(Path(sys.argv[1])))
