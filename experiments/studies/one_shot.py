"""One-shot federated learning: five clients of Dirichlet shares send their networks once, and one network comes out.

    python -m experiments run one_shot --distil --device cuda

ResNet18 of CIFAR-10 and CIFAR-100, 200 local epochs, and ResNet20 and ResNet18 of width 16, 60 local epochs, need a
GPU. A CPU has clients of digits, the four of `checkpoints/` (ResNet20, Dirichlet 0.3, 40 local epochs), and clients of
half a ResNet20's width and few epochs: `--sets one-shot-digits-0.1 shares --threads 1`. A seed draws the shares, the
clients and the images. The server has 2,000 unlabelled images of the task (digits: 900) to match, refit and find one
head by; to train on it has these, or all that are not held out (45,000); or nothing but images of CIFAR-100. Ensembles
run all networks. Intervals are of 95 per cent over seeds; multiplications and parameters are times a client's. In the
row of one head all clients count alike; children are taught by that head or by one in which each client counts for a
class as far as it finds it, whichever tells more.
"""

from __future__ import annotations

from experiments.lib.beside_published import BesidePublished, Published
from experiments.lib.layouts import BOTH, draw_by_cost
from experiments.lib.measure import FLOPS
from experiments.lib.parents.families import Family, shipped
from experiments.lib.parents.protocols import Clients
from experiments.lib.steps import Baseline, Fusion, Step
from experiments.lib.study import Study

CLIENTS = 5
ALPHAS = (0.1, 0.3, 0.5)
SEEDS = 3
FULL = {"epochs": 200, "batch_size": 128, "learning_rate": 0.1}
THIN = {"epochs": 60, "batch_size": 128, "learning_rate": 0.1}
SMALL = {"epochs": 3, "batch_size": 64, "learning_rate": 0.1}
DIGITS = {"epochs": 30, "batch_size": 32, "learning_rate": 0.1}
RIDGE = {"refit": "ridge"}
FOREIGN = "cifar100"
FEW = 2000

COMPARED: dict[str, Step] = {
    **{f"client {n}": Baseline("parent", {"number": n}, max(n, 2), images=False) for n in range(1, CLIENTS + 1)},
    "ensemble": Baseline("ensemble_as_it_is", images=False),
    "ensemble of probabilities": Baseline("ensemble_of_probabilities", images=False),
    "ensemble by counts": Baseline("ensemble_by_counts", images=False),
    "ensemble, one head without labels": Baseline("ensemble_with_joint_head"),
    "average by counts (FedAvg once)": Baseline("naive_by_counts", images=False),
    "average, reset": Baseline("naive_reset"),
    "best client, head refitted": Baseline("best_parent"),
}
FUSED: dict[str, Step] = {
    "matched": Fusion(),
    "matched by counts": Fusion(weigh="counts"),
    "refitted": Fusion(RIDGE),
    "refitted by counts": Fusion(RIDGE, weigh="counts"),
    "refitted, pairs in turn": Baseline("pairs_in_turn"),
    **{
        f"{name} on {shown}": Fusion({**RIDGE, what: passes}, unlabelled=count)
        for name, what, passes in (
            ("distilled for 3 passes", "distil", 3),
            ("distilled for 20 passes", "distil", 20),
            ("self-trained for 20 passes", "train.self_training", 20),
        )
        for shown, count in ((f"{FEW:,} images", FEW), ("all images", 0))
    },
    "refitted, foreign images": Fusion(RIDGE, foreign=FOREIGN),
    "distilled for 20 passes on foreign images": Fusion({**RIDGE, "distil": 20}, foreign=FOREIGN),
}

WITHOUT_NAMES = ("FedDF", "DENSE", "FuseFL, clients train 2 to 8 times")


def _published(alpha: float, average: str, others: tuple[str, ...], ensemble: str) -> Published:
    figures = {"ensemble": ensemble, **dict(zip(WITHOUT_NAMES, others, strict=True))}
    if average:
        figures["average by counts (FedAvg once)"] = average
    return Published(f"published, ResNet18, {alpha}", {name: figure for name, figure in figures.items() if figure})


TEN = (
    _published(0.1, "23.9", ("40.6", "50.3", "73.8"), "57.5"),
    _published(0.3, "27.7", ("46.8", "59.8", "84.6"), "77.4"),
    _published(0.5, "43.7", ("53.6", "62.2", "84.3"), "79.9"),
)
HUNDRED = (
    _published(0.1, "", ("", "", "36.9"), "35.7"),
    _published(0.3, "", ("", "", "45.1"), "49.4"),
    _published(0.5, "", ("", "", "49.3"), "53.4"),
)
RESNET20 = "CIFAR-10, ResNet20"
# Name of the sets -> title of their table, network, data set, training, and whether that needs a GPU.
NETWORKS = {
    "digits": ("Digits, digits_resnet", "digits_resnet(width=1.0)", "digits", DIGITS, False),
    "small": ("CIFAR-10, ResNet20 of half its width", "cifar_resnet20(width=0.5)", "cifar10", SMALL, False),
    "resnet20": (RESNET20, "cifar_resnet20", "cifar10", THIN, True),
    "thin": ("CIFAR-10, ResNet18 of width 16", "cifar_resnet18(width=0.25)", "cifar10", THIN, True),
    "resnet18": ("CIFAR-10, ResNet18", "cifar_resnet18", "cifar10", FULL, True),
    "hundred": ("CIFAR-100, ResNet18", "cifar_resnet18", "cifar100", FULL, True),
}
PARENTS = {
    "shares": shipped("shares", "four clients, Dirichlet 0.3", RESNET20),
    **{
        f"one-shot-{name}-{alpha}": Family(
            f"Dirichlet {alpha}",
            900 if data == "digits" else 2000,
            Clients(network, data, settings, kind, CLIENTS, alpha),
            count=SEEDS,
            gpu=gpu,
        )
        for name, (kind, network, data, settings, gpu) in NETWORKS.items()
        for alpha in ALPHAS
    },
}
PUBLISHED = {
    kind: HUNDRED if data == "cifar100" else TEN for kind, _, data, _, _ in NETWORKS.values() if data != "digits"
}
GIVEN = {
    "shares": "40 local epochs",
    **{name: "clients had 3 local epochs" for name in PARENTS if "-small-" in name},
}
SOURCE = (
    "Published: Tang et al. 2024, *FuseFL: One-Shot Federated Learning through the Lens of Causality with Progressive"
    " Model Fusion*, ResNet18 of full width, 200 local epochs, and its figures of FedAvg, FedDF and DENSE."
)

STUDY = Study(
    "one_shot",
    __doc__,
    PARENTS,
    {"network": {**COMPARED, **FUSED}},
    BesidePublished(PUBLISHED, SOURCE, GIVEN),
    draw_by_cost,
    FLOPS,
    BOTH,
)
