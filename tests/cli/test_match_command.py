"""`depfuse match`, the methods of `depfuse path`, and many parents on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.data import calibration_loader, load_data
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.io.into_network import load_network
from depfuse.report import PathReport, read_report
from depfuse.report.matching import MatchReport

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
DIGITS = [str(CHECKPOINTS / f"digits-same-{name}.safetensors") for name in "ab"] + [
    str(CHECKPOINTS / "digits-a.safetensors")
]
FEW = ["--data", "digits", "--calibration", "200", "--refit", "none"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    code = main(arguments)
    stdout, stderr = capsys.readouterr()
    assert code == 2
    assert stdout == ""
    assert stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr


def matched(folder: Path, *arguments: str, parents: list[str] = DIGITS[:2]) -> MatchReport:
    report = folder / "match.json"
    assert main(["match", *parents, *FEW, "--report", str(report), *arguments]) == 0
    return MatchReport.model_validate_json(report.read_text())


def test_match_shows_costs_and_correlations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "match.png"
    found = matched(tmp_path, "--plot", str(plot), "--distance", "pearson")
    stdout, stderr = capsys.readouterr()
    assert stderr == ""
    (match,) = found.matchings
    assert [group.name for group in match.groups] == ["conv1", "layer1.conv1", "layer2.conv1", "layer2.conv2"]
    for group in match.groups:
        assert group.name in stdout
        assert sorted(group.source or []) == list(range(group.channels))
        assert group.moved == sum(k != source for k, source in enumerate(group.source or []))
        assert group.activation_cost_after < group.activation_cost_before  # type: ignore[operator]
        assert group.correlation_after > group.correlation_before  # type: ignore[operator]
    assert [row.module for row in match.depths] == [
        "layer1",
        "layer1.conv1",
        "layer1.conv2",
        "layer2",
        "layer2.conv2",
        "linear",
    ]
    for row in match.depths:
        assert -1 <= row.after_low <= row.after <= row.after_high <= 1
        assert row.module in stdout
    assert found.converged
    pixels = np.asarray(Image.open(plot).convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_permuted_copy_matches_without_cost(tmp_path: Path) -> None:
    from depfuse.align import Coupling, apply_couplings
    from depfuse.data import load_data
    from depfuse.groups import find_groups, random_permutations
    from depfuse.models import build_network

    first = read_checkpoint(Path(DIGITS[0]))
    assert first.card is not None
    groups = find_groups(
        build_network(first.card.architecture, classes=10, in_channels=1), load_data("digits").example()
    )
    couplings = {name: Coupling(order) for name, order in random_permutations(groups, 1).items()}
    copy = tmp_path / "copy.safetensors"
    write_checkpoint(copy, apply_couplings(groups, couplings, first.state), first.card)
    (match,) = matched(tmp_path, "--criterion", "weights", parents=[DIGITS[0], str(copy)]).matchings
    for group in match.groups:
        assert group.weight_cost_before > 1e-3
        assert group.weight_cost_after == pytest.approx(0.0, abs=1e-6)
        back = torch.argsort(couplings[group.name].permutation)
        assert group.source == back.tolist()


def test_match_of_one_group_and_a_soft_matching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "match.svg"
    found = matched(
        tmp_path, "--group", "layer2.conv1", "--solver", "sinkhorn", "--regularisation", "0.3", "--plot", str(plot)
    )
    (match,) = found.matchings
    assert [group.name for group in match.groups] == ["layer2.conv1"]
    assert match.groups[0].source is None
    assert {row.group for row in match.depths} == {"layer2.conv1"}
    assert "layer2.conv1" in capsys.readouterr().out
    assert "<svg" in plot.read_text()


def test_match_of_many_parents_through_a_universe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "match.png"
    found = matched(tmp_path, "--universe", "--order", "2", "--plot", str(plot), "--distance", "cosine", parents=DIGITS)
    assert found.kept == 1
    assert [match.parent for match in found.matchings] == [0, 2]
    stdout = capsys.readouterr().out
    assert "digits-same-a.safetensors:" in stdout
    assert "digits-a.safetensors:" in stdout


def test_path_draws_several_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, plot = tmp_path / "path.json", tmp_path / "path.png"
    files = ["--report", str(report), "--plot", str(plot)]
    methods = "weights,activations:unbalanced,naive"
    assert main(["path", *DIGITS[:2], *FEW, "--points", "3", "--methods", methods, *files]) == 0
    stdout = capsys.readouterr().out
    found = read_report(report)
    assert isinstance(found, PathReport)
    assert [method.name for method in found.methods] == ["weights", "activations:unbalanced"]
    assert found.methods[0].path == found.path
    assert found.methods[0].barrier_loss == found.barrier.loss
    assert found.methods[1].path[1] != found.path[1]
    assert found.methods[1].recipe["align"]["solver"]["name"] == "unbalanced"
    for method in found.methods:
        assert [row.alpha for row in method.path] == [0.0, 0.5, 1.0]
        assert method.path[0] == found.naive_path[0]
        assert method.path[-1] == found.naive_path[-1]
        assert f"{method.name} accuracy" in stdout
        assert f"by {method.name}" in stdout
    assert found.recipe["align"]["criterion"]["name"] == "weights"
    assert plot.stat().st_size > 10_000


def test_fuse_of_three_parents_in_the_order_of_one(tmp_path: Path) -> None:
    children = []
    for order in (0, 1):
        report, out = tmp_path / f"{order}.json", tmp_path / f"{order}.safetensors"
        arguments = ["--universe", "--order", str(order + 1), "--distance", "cosine", "--weights", "0.5,0.3,0.2"]
        assert main(["fuse", *DIGITS, *FEW, *arguments, "--report", str(report), "--out", str(out)]) == 0
        children.append((json.loads(report.read_text()), read_checkpoint(out).state))
    (first, one), (second, other) = children
    assert first["child"]["accuracy"] == second["child"]["accuracy"]
    assert first["child"]["loss"] == pytest.approx(second["child"]["loss"], rel=1e-5)
    assert first["converged"]
    assert first["not_converged"] == []
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
    rows = [tensors["conv1.weight"].flatten(1).sum(1).sort().values for tensors in (one, other)]
    torch.testing.assert_close(rows[0], rows[1])


def test_a_limit_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "match.json"
    settings = ["--criterion", "weights", "--solver", "spectral", "--iterations", "1"]
    assert main(["match", *DIGITS[:2], *FEW, *settings, "--report", str(report)]) == 0
    found = MatchReport.model_validate_json(report.read_text())
    assert not found.converged
    assert found.not_converged == [
        "spectral did not converge in 1 iterations: its best result so far is used; more may be allowed with iterations"
    ]
    assert found.not_converged[0] in capsys.readouterr().err
    for group in found.matchings[0].groups:
        assert sorted(group.source or []) == list(range(group.channels))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fuse", DIGITS[0], *FEW, "--universe"], ["at least two parents"]),
        (["match", DIGITS[0], *FEW], ["at least two parents"]),
        (["fuse", *DIGITS, *FEW, "--reference", "4"], ["align.through.parent 4 is out of range", "from 1 to 3"]),
        (["fuse", *DIGITS, *FEW, "--order", "7"], ["align.order 7 is out of range", "from 1 to 3"]),
        (["match", *DIGITS, *FEW, "--order", "0"], ["order", "greater than or equal to 1"]),
        (["fuse", *DIGITS, *FEW, "--universe", "--reference", "1"], ["reference 1 would be ignored"]),
        (["fuse", *DIGITS, *FEW, "--universe", "--weights", "0.5,0.5"], ["2 weights for 3 parents"]),
        (["fuse", *DIGITS, *FEW, "--universe", "--solver", "sinkhorn"], ["sinkhorn does not match many parents"]),
        (["match", *DIGITS[:2], *FEW, "--group", "nothing"], ["--group 'nothing' is no free group", "conv1"]),
        (["match", *DIGITS[:2], *FEW, "--plot", "match.txt"], [".png, .pdf or .svg"]),
        (["match", *DIGITS[:2], "--data", "digits", "--calibration", "1"], ["too few"]),
        (["path", *DIGITS[:2], *FEW, "--methods", "naive"], ["no method beside naive"]),
        (["path", *DIGITS[:2], *FEW, "--methods", "weights,magic"], ["--methods 'magic' is not known"]),
        (["path", *DIGITS[:2], *FEW, "--methods", "weights,weights"], ["names weights twice"]),
        (["path", *DIGITS[:2], *FEW, "--methods", "weights:magic"], ["solver"]),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "child.safetensors")] if arguments[0] == "fuse" else []
    refused([*arguments, *out], capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_parents_of_different_depth_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from depfuse.io.cards import Card
    from depfuse.models import build_network

    deeper = tmp_path / "deeper.safetensors"
    network = build_network("cifar_resnet20", classes=10, in_channels=1)
    write_checkpoint(deeper, network.state_dict(), Card(architecture="cifar_resnet20", data="digits"))
    for command in ("fuse", "match"):
        out = ["--out", str(tmp_path / "child.safetensors")] if command == "fuse" else []
        arguments = [command, *DIGITS[:2], str(deeper), *FEW, "--mean", "0.5", "--std", "0.25", "--universe", *out]
        refused(arguments, capsys, "only networks of one architecture can be fused")


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--keep-worst", "0.2"], {}),  # channels that stand side by side are matched as without
        (["--criterion", "weights", "--restarts", "2"], {"criterion": "weights", "restarts": 2}),
    ],
)
def test_what_is_shown_is_what_a_fusion_averages_by(tmp_path, options, settings):
    shown = {group.name: group.source for group in matched(tmp_path, *options).matchings[0].groups}
    parents = [load_network(path) for path in DIGITS[:2]]
    recipe = Recipe(refit="none", **settings)
    used = fuse(parents, recipe, calibration_loader(load_data("digits"), 200)).couplings[1]
    for name, coupling in used.items():
        assert shown[name] == coupling.permutation.tolist()
