"""On a GPU: the same children as on the CPU, up to rounding, by every recipe and step."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from digits_parents import digits_parents
from torch import Tensor

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.data import DataSet, Loader, calibration_loader
from depfuse.evaluate import Scores, evaluate
from depfuse.fusion.parents import Parents
from depfuse.models import build_network
from depfuse.networks.replaying import Recording
from depfuse.recipe.presets import preset, published
from depfuse.teach.distil import Distillation
from depfuse.train import EpochReport, TrainRecipe, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
IMAGES = 400
PLACES = ("cpu", "cuda")
SETTINGS = {
    "defaults": {},
    "weights": {"criterion": "weights"},
    "sinkhorn": {"solver": "sinkhorn", "regularisation": 0.1},
    "universe": {"universe": True},
    "kept apart": {"keep_worst": 0.2},
    "shares by stage": {"weights_by": "stage"},
    "fisher": {"average": "fisher"},
    "repair": {"renorm": "repair"},
    "rescale": {"renorm": "rescale"},
    "data-free": {"renorm": "data-free"},
    "ridge": {"refit": "ridge", "refit_steps": 0},
    "ridge, steps": {"refit": "ridge", "refit_steps": 8, "augment": False},
    "ridge, matched": {"refit": "ridge", "targets": "matched", "refit_steps": 0},
    "least-squares": {"refit": "least-squares"},
    "best": {"goal": "best", "refit_steps": 4},
    "distil": {"refit": "ridge", "refit_steps": 8, "distil": 1},
    "distil without refit": {"distil": 1},
    "finetune": {"finetune": 1},
}
ALIKE = 0.02  # of the accuracy: rounding decides between equal costs, and trainings drift apart
ALIKE_OF = {"c2m3": 0.05}  # its local optima lie further apart


def fused(recipe: Recipe, data: DataSet, device: str) -> Scores:
    parents = [parent.to(device) for parent in digits_parents(*"ab")]
    training = Distillation(data) if recipe.trains else None
    child = fuse(parents, recipe, calibration_loader(data, IMAGES, device=device), training=training).child
    assert {tensor.device.type for tensor in child.state_dict().values()} == {device}
    return evaluate(child, Loader(data.test, data.preprocessing, batch_size=100, device=device))


@pytest.mark.parametrize("name", [*SETTINGS, *published()])
def test_a_child_is_the_same_on_both(name: str, digits: DataSet) -> None:
    settings = SETTINGS.get(name)
    recipe = preset(name).recipe if settings is None else Recipe.create(**settings)
    on_cpu, on_gpu = (fused(recipe, digits, device) for device in PLACES)
    assert on_gpu.accuracy == pytest.approx(on_cpu.accuracy, abs=ALIKE_OF.get(name, ALIKE))


def test_different_labels(digits: DataSet) -> None:
    scores = []
    for device in PLACES:
        parents = [parent.to(device) for parent in digits_parents(*"ab")]
        template = build_network("digits_resnet(width=1.25, classes=15)").to(device)
        images = calibration_loader(digits, IMAGES, device=device)
        recipe = Recipe(refit="ridge", refit_steps=8)
        child = fuse(Parents(parents, labels=[range(10), range(5, 15)], template=template), recipe, images).child
        scores.append(evaluate(child, Loader(digits.test, digits.preprocessing, batch_size=100, device=device)))
    assert scores[1].accuracy == pytest.approx(scores[0].accuracy, abs=ALIKE)


def test_groups_are_proved() -> None:
    network, example = build_network("cifar_resnet18(width=0.25)").eval(), torch.randn(1, 3, 32, 32)
    found = []
    for device in PLACES:
        network, example = network.to(device), example.to(device)
        proved = prove_groups(network, find_groups(network, example), example)
        found.append([(group.name, group.size, group.fixed) for group in proved.groups])
    assert found[0] == found[1]


@pytest.mark.parametrize("compiled", [None, False, True], ids=["recorded", "plain", "compiled"])
def test_training(digits: DataSet, compiled: bool | None, tmp_path: Path) -> None:
    recipe = TrainRecipe.suited_to(digits, epochs=4, compile=compiled, precision="bfloat16")
    network = build_network("digits_resnet(width=1.25)")
    metrics = train(network, digits, recipe, device="cuda", resume_path=tmp_path / "state", save_seconds=0)
    assert metrics["accuracy"] > 0.8
    again = build_network("digits_resnet(width=1.25)")
    again.load_state_dict(network.state_dict())
    assert evaluate(again.eval(), Loader(digits.test, digits.preprocessing, batch_size=100)).accuracy > 0.8


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose kernels that give the same result every time, in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("exact")
def test_recorded_steps_are_those_of_the_host(digits: DataSet) -> None:
    states = []
    for compiled in (None, False):
        torch.manual_seed(0)
        network = build_network("digits_resnet(width=1.25)")
        recipe = TrainRecipe.create(epochs=2, compile=compiled, precision="float32", batch_size=100)
        train(network, digits, recipe, device="cuda")
        states.append(network.state_dict())
    for key, tensor in states[0].items():
        assert torch.allclose(tensor.float(), states[1][key].float(), atol=1e-3, rtol=1e-2), key


@pytest.mark.usefixtures("exact")
def test_a_recorded_training_that_was_cut_off_goes_on(digits: DataSet, tmp_path: Path) -> None:
    class CutOffError(Exception):
        pass

    def cut(report: EpochReport) -> None:
        if report.epoch == 2:
            raise CutOffError

    states = []
    for parts in (1, 2):
        torch.manual_seed(0)
        network = build_network("digits_resnet(width=1.25)")
        recipe = TrainRecipe.create(epochs=4, precision="float32", batch_size=100)
        options = {"device": "cuda", "resume_path": tmp_path / str(parts), "save_seconds": 0}
        if parts == 2:
            with pytest.raises(CutOffError):
                train(network, digits, recipe, progress=cut, **options)
            torch.manual_seed(0)
            network = build_network("digits_resnet(width=1.25)")
        train(network, digits, recipe, **options)
        states.append(network.state_dict())
    for key, tensor in states[0].items():
        assert torch.allclose(tensor.float(), states[1][key].float(), atol=1e-3, rtol=1e-2), key


def test_a_recording_changes_tensors_as_the_function_does() -> None:
    device, recording = torch.device("cuda"), Recording(torch.device("cuda"))
    sums = torch.zeros(3, device=device)

    def add(values: list[Tensor], factor: float) -> tuple[Tensor, Tensor]:
        sums.add_(values[0] * factor)
        return sums * 2, values[0].sum()

    expected = torch.zeros(3)
    for number in range(8):
        values = torch.full((3,), float(number))
        expected += values * (number / 2)
        twice, total = recording.run(add, [values.to(device)], number / 2)
        assert torch.allclose(twice.cpu(), 2 * expected)
        assert float(total) == 3 * number
    # Outputs are the caller's own: the next run does not change them.
    first, _ = recording.run(add, [torch.ones(3, device=device)], 1.0)
    kept = first.clone()
    recording.run(add, [torch.ones(3, device=device)], 1.0)
    assert torch.equal(first, kept)


def test_what_waits_or_has_another_shape_is_run_as_it_is() -> None:
    device, recording, seen = torch.device("cuda"), Recording(torch.device("cuda")), []

    def waiting(values: Tensor) -> Tensor:
        seen.append(float(values.sum()))
        return values + seen[-1]

    for number in range(8):
        assert float(recording.run(waiting, torch.full((1,), float(number), device=device))) == 2 * number
    assert seen == [float(number) for number in range(8)]
    quick = Recording(device)
    for size in (2, 2, 2, 2, 2, 5, 2, 3):
        assert torch.equal(
            quick.run(torch.cumsum, torch.ones(size, device=device), 0).cpu(), torch.arange(1.0, size + 1)
        )


def test_random_numbers_differ_from_replay_to_replay() -> None:
    recording, ones = Recording(torch.device("cuda")), torch.ones(1000, device="cuda")
    drawn = [recording.run(torch.nn.functional.dropout, ones).cpu() for _ in range(8)]
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(drawn))
