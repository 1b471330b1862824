"""Reports: what is written is read back, the sentence is honest, tables and plots show the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from depfuse.errors import DepfuseError, ReportError
from depfuse.evaluate import PathPoint, Scores
from depfuse.report import (
    Barrier,
    EvaluationReport,
    FusionReport,
    GroupsSummary,
    MethodPath,
    NetworkScores,
    PathReport,
    PathRow,
    ScoreValues,
    Seconds,
    barrier_sentence,
    describe_environment,
    read_report,
)
from depfuse.report.plot_kind import plot_kind
from depfuse.report.plots import draw_path, family_figure, path_figure
from depfuse.report.schema import FamilyRow, SharesSummary
from depfuse.report.tables import agreement_columns, fusion_table, path_table, short_names
from depfuse.tasks.scores import CALIBRATION


def scores(accuracy: float, loss: float = 1.0) -> Scores:
    return Scores(accuracy, loss, 100, further={CALIBRATION: 0.05})


def network(accuracy: float, path: str | None = None) -> NetworkScores:
    return NetworkScores.at(None if path is None else Path(path), "0" * 64, scores(accuracy))


def fusion_report(**changes: object) -> FusionReport:
    fields: dict[str, object] = {
        "parents": [network(0.90, "runs/first.safetensors"), network(0.92, "runs/second.safetensors")],
        "ensemble": ScoreValues.of(scores(0.95, 0.2)),
        "naive": ScoreValues.of(scores(0.1, math.inf)),
        "naive_renorm": ScoreValues.of(scores(0.4, 2.0)),
        "child": network(0.93),
        "verdict": "A sentence.",
        "groups": GroupsSummary(count=3, free_channels=48, proof_error=1e-14, fixed={"conv1": "a reason"}),
        "seconds": Seconds(groups=1.0, align=2.0),
        "recipe": {"criterion": "activations"},
        "architecture": "digits_resnet",
        "data": "digits",
        "preprocessing": {"mean": [0.5]},
        "images": 100,
        "environment": describe_environment(torch.device("cpu")),
        "command": ["depfuse", "fuse"],
    }
    return FusionReport.model_validate({**fields, **changes})


def path_report() -> PathReport:
    alphas = (0.0, 0.5, 1.0)
    path = [PathPoint(a, scores(*pair)) for a, pair in zip(alphas, ((0.9, 0.3), (0.8, 0.6), (0.92, 0.3)), strict=True)]
    naive = [
        PathPoint(a, scores(*pair)) for a, pair in zip(alphas, ((0.9, 0.3), (0.1, math.nan), (0.92, 0.3)), strict=True)
    ]
    return PathReport(
        **fusion_report().model_dump(),
        path=[PathRow.at_point(point) for point in path],
        naive_path=[PathRow.at_point(point) for point in naive],
        barrier=Barrier.of(path, naive),
    )


def printed(renderable: object) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize("report", [fusion_report(), path_report()], ids=["fusion", "path"])
def test_report_is_read_back_as_it_was_written(report: FusionReport, tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    place.write_text(report.model_dump_json(indent=2))
    assert read_report(place) == report
    assert type(read_report(place)) is type(report)


def test_evaluation_report_is_read_back(tmp_path: Path) -> None:
    report = EvaluationReport(
        networks=[network(0.9, "a.pt")],
        data="digits",
        preprocessing={},
        images=100,
        seconds={"evaluate": 1.0},
        environment=describe_environment(torch.device("cpu")),
        command=["depfuse", "eval"],
    )
    place = tmp_path / "report.json"
    place.write_text(report.model_dump_json())
    assert read_report(place) == report


def test_report_is_plain_json_without_nan() -> None:
    document = json.loads(path_report().model_dump_json(), parse_constant=pytest.fail)
    assert document["naive"]["loss"] is None
    assert document["naive_path"][1]["loss"] is None
    assert document["barrier"]["naive_loss"] is None
    assert document["barrier"]["loss"] == pytest.approx(0.3)
    assert document["barrier"]["error"] == pytest.approx(0.11)


def test_report_of_a_later_version_is_read(tmp_path: Path) -> None:
    document = json.loads(fusion_report().model_dump_json())
    document["refit"] = {"method": "ridge"}
    document["child"]["margin"] = 1.0
    place = tmp_path / "report.json"
    place.write_text(json.dumps(document))
    assert read_report(place) == fusion_report()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no report"),
        ("[1, 2]", "no report"),
        ("{}", "parents"),
        ('{"networks": 3}', "networks"),
        (fusion_report().model_dump_json().replace('"images":100', '"images":"many"'), "images"),
    ],
)
def test_what_is_no_report_is_refused(text: str, words: str, tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    place.write_text(text)
    with pytest.raises(ReportError, match=words) as refusal:
        read_report(place)
    assert str(place) in str(refusal.value)
    assert isinstance(refusal.value, DepfuseError)


def test_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be read"):
        read_report(tmp_path / "report.json")


def test_table_of_a_fusion_shows_every_network() -> None:
    text = printed(fusion_table(fusion_report()))
    lines = [line.split() for line in text.splitlines()]
    assert ["parent", "first.safetensors", "90.00", "%", "1.0000", "5.00", "%"] in lines
    assert ["logit", "ensemble", "95.00", "%", "0.2000", "5.00", "%"] in lines
    assert ["naive", "average", "10.00", "%", "not", "finite", "5.00", "%"] in lines
    assert ["naive", "average,", "renormalised", "40.00", "%", "2.0000", "5.00", "%"] in lines
    assert ["child", "93.00", "%", "1.0000", "5.00", "%"] in lines


def test_table_of_a_path_shows_both_paths() -> None:
    lines = [line.split() for line in printed(path_table(path_report())).splitlines()]
    assert ["0.50", "80.00", "%", "0.6000", "10.00", "%", "not", "finite"] in lines
    assert len(lines) == 4


def test_names_are_as_short_as_they_tell_networks_apart() -> None:
    assert short_names([network(1, "x/a.pt"), network(1, "y/b.pt")]) == ["a.pt", "b.pt"]
    assert short_names([network(1, "x/a.pt"), network(1, "y/a.pt")]) == ["x/a.pt", "y/a.pt"]


def test_barrier_is_said_in_words() -> None:
    sentence = barrier_sentence(path_report())
    assert "0.3000 nats and 11.00 points" in sentence
    assert "not finite" in sentence


def test_a_child_that_is_refitted_lies_beside_a_path_that_is_not() -> None:
    shares = SharesSummary(network=[0.25, 0.75])
    beside = path_report().model_copy(update={"path_refitted": False, "shares": shares})
    axes = path_figure(beside).axes[0]
    star = next(line for line in axes.get_lines() if line.get_label() == "child")
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([0.75], [pytest.approx(93.0)])
    assert "matched, not refitted" in [line.get_label() for line in axes.get_lines()]
    assert barrier_sentence(beside).endswith("Networks on the path are not refitted, as the child is.")
    assert "child" not in [line.get_label() for line in path_figure(path_report()).axes[0].get_lines()]


@pytest.mark.parametrize(("kind", "head"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_of_a_path_is_drawn_the_same_each_time(kind: str, head: bytes, tmp_path: Path) -> None:
    for name in ("first", "second"):
        draw_path(path_report(), tmp_path / name, kind)
    assert (tmp_path / "first").read_bytes().startswith(head)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def assert_legible(figure: Figure) -> None:
    """Check that no two names of ticks, axes or curves meet, and that none is cut off."""
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label, axes.title)]
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts.append(axis.get_offset_text())
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    assert len(boxes) > 10
    for number, (text, box) in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text
        for other, place in boxes[number + 1 :]:
            assert not box.overlaps(place), (text, other)


@pytest.mark.parametrize("values", [(0.9, 0.95, 1.0), (0.99991, 0.99992, 0.99993), (0.1, 1e4, 1e6), (0.5, 0.5, 0.5)])
def test_pictures_of_paths_and_candidates_are_legible(values: tuple[float, ...]) -> None:
    names = ("parent 1, merged from stage 2 on", "average, shares by stage", "parent 2, head refitted")
    family = [
        FamilyRow(
            name=name, disagreement=value, seconds=value, chosen=value == values[0],
            accuracy=min(value, 1.0), loss=value, calibration_error=0.0,
        )
        for name, value in zip(names, values, strict=True)
    ]  # fmt: skip
    best = family_figure(fusion_report(family=family))
    rows = [
        PathRow(alpha=share, accuracy=min(value, 1.0), loss=value, calibration_error=0.0)
        for share, value in zip((0.0, 0.5, 1.0), values, strict=True)
    ]
    several = [
        MethodPath(name=name, path=rows, barrier_loss=0.0, barrier_error=0.0, seconds=1.0, recipe={})
        for name in ("weights", "activations:reweighted-random-walk", "mixture")
    ]
    path = path_figure(path_report().model_copy(update={"path": rows, "naive_path": rows, "methods": several}))
    for figure in (best, path):
        assert_legible(figure)
    assert {text.get_text() for text in best.legends[0].get_texts()} == {"child", "parents", "logit ensemble"}


def test_kind_of_a_plot_is_in_its_name() -> None:
    assert plot_kind(Path("a/b.PNG")) == "png"
    with pytest.raises(ReportError, match=r"b\.bmp: a plot's name must end in \.png"):
        plot_kind(Path("a/b.bmp"))


def test_environment_says_where_the_run_took_place() -> None:
    environment = describe_environment(torch.device("cpu"))
    assert environment.device == "cpu"
    assert environment.torch == torch.__version__
    assert environment.threads >= 1


def test_a_loss_that_is_not_finite_is_not_taken_for_a_confidence() -> None:
    # Detectors of other classes: each has no logit for what the other one sees.
    unlike = ScoreValues(agreement=0.9, agreement_with=[1.0, 0.8])
    child = ScoreValues(agreement=0.9, agreement_with=[0.9, 0.9], ensemble_loss=0.4)
    heads, rows = agreement_columns(["a.pt", "b.pt"], [unlike, child])
    assert heads == ["agrees with the ensemble", "with a.pt", "with b.pt", "ensemble loss"]
    assert [row[-1] for row in rows] == ["not finite", "0.4000"]
    classes = [ScoreValues(agreement=0.9, confidence=None), ScoreValues(agreement=0.9, confidence=0.8)]
    heads, rows = agreement_columns(["a.pt"], classes)
    assert (heads, rows) == (["confidence"], [["not finite"], ["80.00 %"]])
