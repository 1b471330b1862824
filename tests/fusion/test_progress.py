"""Long work says how far it is to whoever watches, and a script stays silent."""

from __future__ import annotations

import io
import re
import sys
import time
import types
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from digits_parents import small_files, small_parents

from depfuse import Recipe, compare, fuse, progress
from depfuse.cli import main
from depfuse.cli.console import Screen
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.fusion.costs import LAYERS, STEP, foretell_refit, quicker_than, seconds_of_passes
from depfuse.progress import Work, named, shown, work
from depfuse.progress.displays import Bar, Cell, Lines
from depfuse.progress.steps import LOST
from depfuse.progress.words import clock, rounded
from depfuse.teach.distil import Distillation
from depfuse.train import TrainRecipe, fit


class Recorded(Work):
    """Remembers every step, as (description, parts done, parts in all)."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, int, int | None]] = []

    def changed(self, *, begun: bool = False) -> None:
        if begun:
            self.steps.append((self.description, 0, self.total))
        else:
            self.steps[-1] = (self.description, self.done, self.total)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture
def watcher() -> Recorded:
    return Recorded()


def test_a_fusion_and_its_comparison_say_every_step_and_count_what_can_be_counted(
    data: DataSet, watcher: Recorded
) -> None:
    recipe = {"refit": {"name": "ridge", "steps": 8}}
    result = fuse(small_parents(), recipe, calibration_loader(data, 200), progress=watcher)
    compare(result, Loader(data.test, data.preprocessing, batch_size=100), progress=watcher)
    assert watcher.steps[0] == ("preparing the parents", 0, None)
    assert ("finding and proving channel groups", 0, None) in watcher.steps
    assert ("refitting layer by layer", 7, 7) in watcher.steps
    assert ("refitting all layers together", 8, 8) in watcher.steps
    assert ("evaluating the networks", 5, 5) in watcher.steps


def test_a_training_says_epoch_loss_and_score_and_counts_batches(data: DataSet, watcher: Recorded) -> None:
    few = replace(data, train=data.train.take(slice(0, 100)))
    with shown(watcher):
        fit(small_parents()[0], few, TrainRecipe(epochs=2, batch_size=20, learning_rate=0.01))
    ((description, done, total),) = watcher.steps
    assert re.fullmatch(r"training: epoch 2 of 2, loss \d\.\d{3}, accuracy \d+\.\d %", description)
    assert done == total == 10
    fuse(
        small_parents(),
        {"preset": "fast", "train.distil": 1},
        calibration_loader(data, 60),
        training=Distillation(few),
        progress=watcher,
    )
    assert any(step.startswith("distil, child: epoch 1 of 1, loss") for step, _, _ in watcher.steps)


def test_candidates_are_named_before_their_steps(data: DataSet, watcher: Recorded) -> None:
    result = fuse(small_parents(), {"preset": "best", "goal.steps": 0}, calibration_loader(data, 40), progress=watcher)
    said = {description for description, _, _ in watcher.steps}
    assert {f"{own.name}: refitting layer by layer" for own in result.family if own.name.startswith("average")} <= said
    assert "refitting layer by layer" not in said


def _run(watcher: Recorded, command: list[str]) -> int:
    """Run a command while somebody watches."""
    with shown(watcher):
        return main(command)


def test_commands_count_what_takes_longest(watcher: Recorded, tmp_path: Path) -> None:
    small = (*small_files(), "--data", "digits", "--calibration", "40", "--device", "cpu")
    assert _run(watcher, ["path", *small, "--points", "4", "--set", "refit=ridge", "--set", "refit.steps=0"]) == 0
    first = watcher.steps.index(("evaluating the naive path", 2, 2))
    assert watcher.steps[first + 1 :] == [("evaluating the path", 2, 2)]
    watcher.steps.clear()
    plot = ["--plot", str(tmp_path / "path.png"), "--out", str(tmp_path / "child.safetensors")]
    assert _run(watcher, ["fuse", *small, *plot, "--set", "refit=ridge", "--set", "refit.steps=0"]) == 0
    refitted = [total for step, _, total in watcher.steps if step == "refitting layer by layer" and total]
    assert len(refitted) == 1  # the child alone
    assert ("evaluating the path", 3, 3) in watcher.steps
    watcher.steps.clear()
    assert _run(watcher, ["tune", *small, "--trials", "2", "--set", "refit=none", "--out", str(tmp_path / "tune")]) == 0
    assert [step for step in watcher.steps if step[0] == "searching"] == [("searching", 2, 2)]
    assert watcher.steps[-1] == ("drawing", 0, None)
    assert not any("refitting" in description for description, _, _ in watcher.steps)
    watcher.steps.clear()
    out = str(tmp_path / "net.safetensors")
    assert _run(watcher, ["train", "digits_resnet(width=0.25)", "--data", "digits", "--epochs", "1", "--out", out]) == 0
    assert [description.split(",")[0] for description, _, _ in watcher.steps][-2:] == [
        "training: epoch 1 of 1", "evaluating",
    ]  # fmt: skip
    assert all(done == total for _, done, total in watcher.steps[-2:])
    watcher.steps.clear()
    assert _run(watcher, ["eval", *small_files(), "--data", "digits", "--device", "cpu"]) == 0
    assert watcher.steps[-1] == ("evaluating", 2, 2)


def test_a_training_says_its_epoch_before_the_first_is_over(data: DataSet, watcher: Recorded) -> None:
    said: list[str] = []
    few = replace(data, train=data.train.take(slice(0, 40)))
    watcher.advance = lambda: said.append(watcher.description)  # type: ignore[method-assign]
    with shown(watcher):
        fit(small_parents()[0], few, TrainRecipe(epochs=2, batch_size=20, learning_rate=0.01))
    assert said[0] == "training: epoch 1 of 2"


def test_a_script_stays_silent(data: DataSet, capfd: pytest.CaptureFixture[str]) -> None:
    fuse(small_parents(), "fast", calibration_loader(data, 60))
    assert capfd.readouterr() == ("", "")


def test_where_someone_looks_on_it_is_shown_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with shown() as watching:
        assert isinstance(watching, Bar)
    with shown(False) as watching:
        assert type(watching) is Work
    monkeypatch.delattr(sys, "ps1")
    with shown() as watching:
        assert type(watching) is Work


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_of_which_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown(True) as watching:
        watching.step("finding [bold]groups[/bold]")
        for _ in watching.track(range(4), "refitting"):
            time.sleep(0.06)
    assert "refitting" in terminal.getvalue()
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")


def test_a_log_has_a_line_from_time_to_time(capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every=0.05)
    lines.step("refitting", total=4)
    lines.advance()
    time.sleep(0.13)
    lines.close()
    printed = capfd.readouterr().err.splitlines()
    assert len(printed) >= 1
    assert re.fullmatch(r"depfuse: refitting, 1 of 4, 0:00:00 so far, about 0:00:0\d left", printed[0])
    time.sleep(0.1)
    assert capfd.readouterr().err == ""


def test_a_notebook_has_a_line_that_changes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[str] = []
    handle = types.SimpleNamespace(update=updates.append)
    display = types.SimpleNamespace(HTML=str, display=lambda first, display_id: handle)
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", display)  # type: ignore[arg-type]
    with shown() as watching:
        assert isinstance(watching, Cell)
        watching.step("refitting <b>", total=4)
    assert '<progress max="4" value="0">' in updates[0]
    assert "refitting &lt;b&gt;, 0 of 4" in updates[0]
    assert updates[-1] == ""


def test_the_end_is_estimated_from_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watching = Work()
    watching.step("training", total=200)
    assert watching.left is None
    now = 110.0
    watching.advance()
    assert watching.left is None  # of one part in 200 nothing follows
    watching.done = 50
    assert watching.left == pytest.approx(30.0)
    assert str(watching) == "training, 50 of 200, 0:00:10 so far, about 0:00:30 left"
    assert clock(3725.4) == "1:02:05"


def test_work_within_work_is_shown_by_the_same_watcher(watcher: Recorded) -> None:
    with shown(True) as outer, shown(True) as inner:
        assert inner is outer is work()
        with named("distil, child"):
            assert progress.name("training") == "distil, child"
    assert type(work()) is Work
    assert progress.name("training") == "training"


@dataclass
class Told(Work):
    """Remembers what it was told; its clock goes on when it is told to."""

    said: list[str] = field(default_factory=list)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still."""
    time_now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: time_now[0])
    return time_now


def test_what_takes_over_a_minute_is_foretold_from_its_first_seconds(now: list[float]) -> None:
    told = Told()
    for seconds, expected in ((0.5, []), (0.7, ["evaluating will take about 70 seconds; fewer images take less"])):
        for _ in told.track(range(100), "evaluating", "fewer images take less"):
            now[0] += seconds
        assert told.said == expected
    told.said.clear()
    for _ in told.track(range(100), "drawing"):
        now[0] += 80.0
    assert told.said == ["drawing will take about 2 hours"]


def test_a_stage_whose_cost_is_known_is_foretold_before_it_begins_and_once(now: list[float]) -> None:
    told = Told()
    told.enter("refit", "refitting")
    told.advise("`preset=fast` leaves it out")
    told.foretell(59.0)
    assert told.said == []
    told.enter("refit", "refitting")
    told.advise("`preset=fast` leaves it out")
    told.foretell(423.0)
    assert told.said == ["refitting will take about 7 minutes; `preset=fast` leaves it out"]
    for _ in told.track(range(100), "refitting layer by layer"):
        now[0] += 4.0
    assert len(told.said) == 1
    told.enter("heads", "refitting heads")
    for _ in told.track(range(100), "evaluating"):
        now[0] += 4.0
    assert told.said[1:] == ["evaluating will take about 7 minutes"]


def test_what_a_step_costs_is_told_before_its_first_part_where_it_is_known(now: list[float]) -> None:
    told = Told()
    for _ in told.track(range(100), "walking", "others are quicker", lambda: 3600.0):
        assert told.said == ["walking will take about 60 minutes; others are quicker"]
        now[0] += 30.0
    told = Told()
    for done in told.track(range(100), "walking", cost=lambda: 59.0):  # it was thought to take less than it does
        assert told.said == ["walking will take about 5 minutes"] * (done > 0)
        now[0] += 3.0


def test_steps_within_a_step_show_unless_its_parts_are_counted(watcher: Recorded) -> None:
    watcher.enter("align", "matching")
    assert list(watcher.within([1, 2], "collecting")) == [1, 2]
    for _ in watcher.track(range(2), "drawing"):
        assert list(watcher.within([1, 2], "collecting")) == [1, 2]
    assert watcher.steps == [("matching", 0, None), ("collecting", 2, 2), ("matching", 0, None), ("drawing", 2, 2)]


def test_a_refit_is_foretold_by_passes_of_the_parents(data: DataSet) -> None:
    ticks = iter([10.0, 10.32])  # 32 images take 0.32 s, once warm
    images, told = calibration_loader(data, 640), Told()
    assert seconds_of_passes(small_parents(), images, lambda: next(ticks)) == pytest.approx(2 * 640 * 0.01)
    ticks = iter([10.0, 10.32])
    with shown(told):
        foretell_refit(small_parents(), images, Recipe(refit="ridge"), lambda: next(ticks))
    assert told.said == [f" will take about {rounded((LAYERS + 160 * STEP) * 12.8)}"]
    assert "`preset=fast` leaves it out" in quicker_than(Recipe(refit="ridge"))
    assert quicker_than(Recipe(refit="regmean")) == "`preset=fast` leaves it out"
    assert "`preset=standard`" in quicker_than(Recipe(preset="best"))


def test_a_sentence_in_a_log_speaks_of_options_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    with Screen(quiet=False).working() as watching:
        watching.say("`preset=fast` leaves it out")
    assert capfd.readouterr().err == "depfuse: --preset fast leaves it out\n"


def test_an_interruption_says_what_is_lost_and_what_remains(now: list[float]) -> None:
    told = Told()
    for _ in told.track(range(4), "training"):
        now[0] += 30.0
    assert told.interrupted() == f"interrupted while training, 4 of 4, 0:02:00 so far, about 0:00:00 left: {LOST}"
    told.keeps("child.training holds the training")
    assert told.interrupted().endswith(": child.training holds the training")


def test_a_fusion_says_every_step_within_its_matching(data: DataSet, watcher: Recorded) -> None:
    fuse(small_parents(), "fast", calibration_loader(data, 500), progress=watcher)
    assert ("collecting activations", 2, 2) in watcher.steps
    assert any(step == ("matching channels", total, total) for step in watcher.steps for total in [step[2]] if total)
    assert any(description == "renewing statistics" and done == total for description, done, total in watcher.steps)


OF_ALL_GROUPS = pytest.mark.parametrize(
    ("name", "step"),
    [
        ("spectral", "computing the principal eigenvector of affinities"),
        ("reweighted-random-walk", "walking at random among candidates"),
        ("ipfp", "searching the fixed point of affinities"),
        ("sinkhorn-implicit", "descending on couplings"),
    ],
)


@dataclass
class ToldWhen(Told):
    """Remembers also how many parts of a step were done when it was told."""

    when: list[int] = field(default_factory=list)

    def say(self, sentence: str) -> None:
        super().say(sentence)
        self.when.append(self.done)


@pytest.mark.filterwarnings("ignore::depfuse.errors.LimitWarning")
@OF_ALL_GROUPS
def test_solvers_of_all_groups_tell_their_cost_before_their_first_step(
    data: DataSet, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0 * next(ticks))  # all that is timed takes ten seconds
    told = ToldWhen()
    criterion = "activations" if name == "sinkhorn-implicit" else "weights"
    recipe = {"solver": name, "criterion": criterion, "iterations": 3, "refit": "none"}
    fuse(small_parents(), recipe, calibration_loader(data, 200), progress=told)
    expected = [step] if name == "sinkhorn-implicit" else ["computing affinities", step]
    assert told.when[: len(expected)] == [0] * len(expected)
    for what, sentence in zip(expected, told.said, strict=False):  # a later ascent tells its own cost
        assert re.fullmatch(rf"(.*)?{what} will take about [^;]+; solvers emd and .* take seconds", sentence)


@pytest.mark.filterwarnings("ignore::depfuse.errors.LimitWarning")
@pytest.mark.parametrize("through", ["reference", "universe"])
def test_an_ascent_that_converges_early_is_foretold_by_its_first_steps(
    data: DataSet, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: 20.0 * next(ticks))  # two steps take twenty seconds
    told = Told()
    recipe = {"solver": "frank-wolfe", "criterion": "weights", "universe": through == "universe", "refit": "none"}
    fuse(small_parents(), recipe, calibration_loader(data, 200), progress=told)
    sentence = r"(.*)?ascending towards permutations will take about 3 minutes; solvers emd and .* take seconds"
    assert re.fullmatch(sentence, told.said[0])


@pytest.mark.filterwarnings("ignore::depfuse.errors.LimitWarning")
@OF_ALL_GROUPS
def test_solvers_of_all_groups_count_their_iterations(data: DataSet, watcher: Recorded, name: str, step: str) -> None:
    criterion = "activations" if name == "sinkhorn-implicit" else "weights"
    recipe = {"solver": name, "criterion": criterion, "iterations": 3, "refit": "none"}
    fuse(small_parents(), recipe, calibration_loader(data, 200), progress=watcher)
    counted = [total for description, done, total in watcher.steps if description.endswith(step) and done]
    assert counted
    assert all(total in (3, 4) for total in counted)
