"""Searches over recipes: what is drawn, what comes of a trial, that none is lost, and bad input in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
import torch
from conftest import assert_one_sentence
from digits_parents import digits_files, digits_parents, small_parents
from optuna.trial import TrialState
from pydantic import TypeAdapter

from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.shared import SharedMoments
from depfuse.cli import main
from depfuse.data import DataSet, Preprocessing, Split, calibration_loader
from depfuse.data.loader import calibration_order
from depfuse.ensemble.distance import SCALES
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import RecipeError, StudyError
from depfuse.fusion.parents import Parents
from depfuse.fusion.pipeline import fuse
from depfuse.groups import find_groups, prove_groups
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, state_digest, write_checkpoint
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import places
from depfuse.recipe.fields import Between, OneOf, setting
from depfuse.recipe.solvers import facts
from depfuse.report.page import build_page, find_runs
from depfuse.report.study import StudyReport
from depfuse.study.importances import importances
from depfuse.study.judge import Quality
from depfuse.study.objective import Objective, growing
from depfuse.study.search import IDENTITY, Search, open_study
from depfuse.study.search_space import Space, declared
from depfuse.study.storage import DatabaseStorage, FileStorage
from depfuse.study.trials import Judged, TrialRecord, best_first, pareto_front

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

# Searches of seconds: one criterion, no refit, few images, and a seed that draws no solver that takes long.
QUICK = "--data digits --criterion activations --refit none --average mean --calibration 200 --held-out 100 --seed 2"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(before)


def tune(out: Path, *words: str, trials: int = 6, parents: list[str] | None = None, quick: str = QUICK) -> int:
    given = digits_files("a", "b") if parents is None else parents
    return main(["tune", *given, *quick.split(), "--quiet", "--out", str(out), "--trials", str(trials), *words])


def found(out: Path) -> dict[int, dict[str, Any]]:
    """What the trials' files hold but for the seconds."""
    records = [json.loads(path.read_text()) for path in out.glob("trial-*.json")]
    return {record.pop("trial"): {k: v for k, v in record.items() if k != "seconds"} for record in records}


# --- the space -------------------------------------------------------------------------------------


@cache
def drawn_of_all() -> list[dict[str, Any]]:
    """Draw from the whole space of two parents, for all tests that look at it."""
    return list(drawn(Space(2, {}), 150))


def drawn(space: Space, count: int) -> Iterator[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        yield space.suggest(study.ask())


def test_every_drawn_recipe_is_accepted_or_refused_in_a_sentence() -> None:
    space, seen, refused = Space(2, {}), set(), 0
    for settings in drawn_of_all():
        seen |= settings.keys()
        try:
            recipe = space.recipe(settings)
        except RecipeError:
            refused += 1
        else:
            assert all(recipe.settings[path] == value for path, value in settings.items())
    kept = {"align.through.iterations", "align.through.restarts"}  # these are drawn where a universe is kept,
    kept |= {"align.solver.start.structure", "align.solver.start.iterations"}  # and these where a solver is the start
    assert seen == {own.place.path for own in declared(Recipe)} - kept
    assert refused < 15  # what can be said beforehand is not drawn


def test_only_what_the_recipe_uses_is_drawn() -> None:
    for settings in drawn_of_all():
        solver, criterion = settings["align.solver"], settings["align.criterion"]
        refit = settings.get("refit")
        assert ("align.criterion.share" in settings) == (criterion == "mixture")
        assert ("align.solver.regularisation" in settings) == (solver in ("sinkhorn", "cca"))
        assert ("align.solver.strictness" in settings) == (solver == "unbalanced")
        assert ("align.solver.structure" in settings) == (solver == "fused-gromov")
        assert ("merge.average" in settings) == (facts(solver).gives == "permutation")
        assert ("refit.targets" in settings) == ("refit.steps" in settings) == (refit == "ridge")
        if criterion == "weights" and settings.get("align.solver.start") != "activations":
            assert not {path for path in settings if path.endswith((".taps", ".distance"))}
        if solver == "sinkhorn-implicit" and settings["align.solver.start"] == "identity":
            assert "align.criterion.distance" not in settings
        if solver == "sinkhorn":
            assert settings["align.solver.regularisation"] <= 1


def test_declarations_fit_the_recipe() -> None:
    for own in declared(Recipe):
        assert own.depends <= {place.path for place in places(Recipe)}
        kind = TypeAdapter(Annotated[own.place.field.annotation, own.place.field])
        if isinstance(own.search, Between):
            assert [kind.validate_python(value) for value in (own.search.low, own.search.high)]
        elif isinstance(own.search, OneOf) and own.place.registry is not None:
            assert all(name in own.place.registry for name in own.search.options)
        elif isinstance(own.search, OneOf):
            assert all(kind.validate_python(value) == value for value in own.search.options)


def test_a_new_setting_is_searched_without_a_change_of_the_search() -> None:
    class Later(Recipe):
        blur: float = setting(1.0, "of a method that does not exist yet", gt=0.0, search=Between(0.5, 2.0, log=True))

    space = Space(2, {"refit": "none"}, model=Later)
    for settings in drawn(space, 50):
        assert 0.5 <= settings["blur"] <= 2.0
    assert isinstance(space.recipe({"blur": 0.7}), Later)


def test_kept_settings_are_not_drawn_and_the_first_trial_has_the_defaults() -> None:
    space = Space(3, {"criterion": "weights", "solver": "ipfp"})
    for settings in drawn(space, 20):
        assert not settings.keys() & {"align.criterion", "align.solver", "align.solver.regularisation"}
        shares = settings["merge.weights"]
        assert sum(shares) == pytest.approx(1.0)
        assert max(share / shares[0] for share in shares) <= 2.0 + 1e-9
    study = optuna.create_study()
    study.enqueue_trial(Space(2, {}).defaults())
    assert Space(2, {}).recipe(Space(2, {}).suggest(study.ask())) == Recipe(weights=(0.5, 0.5), refit="ridge")
    with pytest.raises(RecipeError, match="nothing is left to search"):
        Space(2, {own.place.path: own.place.default for own in declared(Recipe)})


# --- what trials share -----------------------------------------------------------------------------


def test_moments_are_collected_once_and_the_child_is_the_same(digits: DataSet) -> None:
    parents, images = small_parents(), calibration_loader(digits, 100)
    example = digits.example()
    groups = prove_groups(parents[0], find_groups(parents[0], example), example)
    calls: list[int] = []

    def counted(*given: Any) -> Any:
        calls.append(len(given))
        return collect_moments(*given)

    shared = SharedMoments(parents, groups, counted)
    recipe = Recipe(refit="none", distance="pearson")
    digests = set()
    for own in (None, shared, shared, shared):
        child = fuse(Parents(parents, example=example, groups=groups, moments=own), recipe, images).child
        digests.add(state_digest(child.state_dict()))
    assert len(digests) == 1
    assert len(calls) == 1
    assert shared.saved > 0
    fuse(Parents(parents, example=example, groups=groups, moments=shared), recipe.changed(taps="both"), images)
    fuse(Parents(small_parents(), example=example, groups=groups, moments=shared), recipe, images)
    assert len(calls) == 3


@pytest.mark.parametrize(("own", "found"), [({}, "multilabel"), ({"task": "classes"}, "classes")])
def test_trials_are_of_the_common_task_where_their_recipe_leaves_it_open(
    own: dict[str, Any], found: str, digits: DataSet
) -> None:
    space = Space(2, {"refit": "none", "solver": "emd", "criterion": "weights", **own})
    common = Recipe(task="multilabel").changed({"calibration.images": 100})
    trial = optuna.trial.FixedTrial(space.defaults())
    Objective(space, common, Parents(small_parents()), digits, judged=50)(trial)
    assert trial.user_attrs["result"]["recipe"]["task"] == {"name": found}


def test_a_parent_agrees_less_than_its_twin_ensemble_and_labels_give_accuracy(digits: DataSet) -> None:
    parents, images = digits_parents("same-a", "same-b"), calibration_loader(digits, 100)
    agreement = Quality(Ensemble(parents, (0.5, 0.5)), images)
    assert Quality(Ensemble(parents[:1], (1.0,)), images)(parents[0]) < agreement(parents[0])
    accuracy = Quality(Ensemble(parents, (0.5, 0.5)), images, labelled=True)(parents[0])
    expected = (parents[0](torch.cat([batch for batch, _ in images])).argmax(1) == images.labels).double().mean()
    assert accuracy == pytest.approx(float(expected))
    broken = digits_parents("same-a")[0]
    next(broken.parameters()).data.fill_(float("nan"))
    assert agreement(broken) == float("inf")
    assert torch.is_grad_enabled()


def test_sizes_grow() -> None:
    assert growing(2000) == [250, 500, 1000, 2000]
    assert growing(300) == [150, 300]
    assert growing(40) == [40]


# --- a search --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of six trials."""
    out = tmp_path_factory.mktemp("tune") / "out"
    assert tune(out, trials=6) == 0
    return out


def test_a_search_is_reproduced_and_goes_on_as_if_it_had_not_stopped(searched: Path, tmp_path: Path) -> None:
    records = found(searched)
    assert len(records) >= 5  # those that are refused have no recipe to write
    assert records[0]["recipe"]["align"]["solver"]["name"] == "emd"
    assert records[0]["parameters"]["align.criterion.distance"] == "best"
    assert tune(tmp_path / "parts", trials=3) == 0
    assert max(found(tmp_path / "parts")) < 3
    assert tune(tmp_path / "parts", "--resume", trials=6) == 0
    assert found(tmp_path / "parts") == records
    seconds = (tmp_path / "parts" / "trial-0.json").read_bytes()
    assert tune(tmp_path / "parts", "--resume", trials=6) == 0  # there is nothing left to do
    assert found(tmp_path / "parts") == records
    assert (tmp_path / "parts" / "trial-0.json").read_bytes() == seconds
    names = {path.name for path in searched.iterdir()} - {f"trial-{number}.json" for number in range(6)}
    assert names == {"study.log", "study.json", "report.html"}


def test_the_whole_study_is_one_file_and_one_page(searched: Path) -> None:
    (run,) = find_runs(searched).runs
    report = run.report
    assert isinstance(report, StudyReport)
    assert (len(report.trials), report.asked, report.labelled, report.timed) == (6, 6, False, False)
    assert (report.calibration, report.judged, report.data) == (200, 100, "digits")
    assert report.parents == digits_files("a", "b")
    assert report.kept["align.criterion"] == "activations"
    assert "solver" not in report.kept
    assert report.command[:2] == ["depfuse", "tune"]
    for number, kept in found(searched).items():
        (own,) = [trial for trial in report.trials if trial.trial == number]
        assert own.model_dump(mode="json", exclude={"trial", "seconds"}) == kept
    assert (searched / "report.html").read_text(encoding="utf-8") == build_page(find_runs(searched))


def test_optunas_dashboard_shows_a_search(searched: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    journal = optuna.storages.journal.JournalFileBackend(str(searched / "study.log"))
    application = dashboard.wsgi(optuna.storages.JournalStorage(journal))

    def answer(address: str) -> Any:
        environment: dict[str, Any] = {"PATH_INFO": address}
        setup_testing_defaults(environment)
        return json.loads(b"".join(application(environment, lambda status, headers, failure=None: None)))

    (summary,) = answer("/api/studies")["study_summaries"]
    trials = answer(f"/api/studies/{summary['study_id']}")["trials"]
    assert {trial["number"] for trial in trials} == set(found(searched))
    assert all(trial["params"] for trial in trials)


def test_a_trial_run_again_by_fuse_gives_the_same_child(searched: Path, tmp_path: Path) -> None:
    complete = [number for number, record in found(searched).items() if record["state"] == "complete"]
    for number in (complete[0], complete[-1]):
        out = tmp_path / f"{number}.safetensors"
        recipe = str(searched / f"trial-{number}.json")
        command = ["fuse", *digits_files("a", "b"), "--data", "digits", "--recipe", recipe, "--out", str(out), "-q"]
        assert main(command) == 0
        assert read_checkpoint(out).digest == found(searched)[number]["digest"]


INTERRUPTING = """
from pathlib import Path

from depfuse.models import build_network

FOLDER = Path(__file__).parent


class Interrupting(type(build_network("digits_resnet"))):
    def forward(self, images):
        if (FOLDER / "out" / "trial-1.json").exists() and not (FOLDER / "interrupted").exists():
            (FOLDER / "interrupted").touch()
            raise KeyboardInterrupt  # in the middle of the third trial
        return super().forward(images)


def network():
    made = build_network("digits_resnet(width=0.5)")
    made.__class__ = Interrupting
    return made
"""


def test_an_interrupted_trial_is_run_again(tmp_path: Path, capsys) -> None:
    (tmp_path / "net.py").write_text(INTERRUPTING)
    parents = []
    for number, parent in enumerate(small_parents()):
        parents.append(str(tmp_path / f"{number}.safetensors"))
        write_checkpoint(parents[-1], parent.state_dict(), Card(architecture=f"{tmp_path / 'net.py'}:network"))
    words = [word for parent in parents for word in ("--trust", parent)]
    assert tune(tmp_path / "out", *words, trials=4, parents=parents) == 130
    said = "the trials that are finished are kept, and the same command with --resume goes on with them"
    assert said in capsys.readouterr().err
    assert (tmp_path / "interrupted").exists()
    assert tune(tmp_path / "out", *words, "--resume", trials=4, parents=parents) == 0
    storage = FileStorage(tmp_path / "out" / "study.log")
    study = optuna.load_study(study_name="depfuse", storage=storage.optuna)
    storage.close()
    (failed,) = study.get_trials(states=(TrialState.FAIL,))
    (again,) = [trial for trial in study.trials if trial.system_attrs.get("failed_trial") == failed.number]
    assert again.params == failed.params
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials) == 4
    assert not list((tmp_path / "out").glob(".worker-*"))


def test_two_objectives_give_a_front_and_labels_give_accuracy(tmp_path: Path, capsys) -> None:
    given = digits_files("a", "b")
    options = [*QUICK.split(), "--trials", "4", "--seconds", "--labels", "60", "--out", str(tmp_path)]
    assert main(["tune", *given, *options]) == 0
    said = capsys.readouterr().out
    assert "held-out accuracy" in said
    report = StudyReport.model_validate_json((tmp_path / "study.json").read_bytes())
    assert report.labelled
    assert report.timed
    records = found(tmp_path)
    assert all(record["state"] != "pruned" for record in records.values())
    assert all(round(60 * record["quality"], 6).is_integer() for record in records.values() if record["quality"])


def record(number: int, quality: float, seconds: float) -> TrialRecord:
    return TrialRecord(trial=number, state="complete", quality=quality, seconds=seconds, parameters={}, recipe={})


def test_the_front_holds_what_no_other_surpasses() -> None:
    rows = [record(0, 0.5, 1.0), record(1, 0.4, 2.0), record(2, 0.4, 1.5), record(3, 0.6, 1.2), record(4, 0.9, 0.1)]
    assert [row.trial for row in best_first(rows, labelled=False)] == [2, 1, 0, 3, 4]
    assert [row.trial for row in pareto_front(rows, labelled=False)] == [2, 0, 4]
    assert [row.trial for row in pareto_front(rows, labelled=True)] == [4]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_importances_look_at_the_best_trials_whatever_is_searched_for(direction: str, recwarn) -> None:
    sign = 1.0 if direction == "minimize" else -1.0
    studies = [optuna.create_study(directions=[direction, "minimize"][:count]) for count in (1, 2)]
    for number in range(40):
        # Of the best trials all have x near 0, of the worst all have y near 0.
        x, y = number / 40, (number * 17 % 40) / 40
        quality = sign * (x if x < 0.25 else 2.0 - y)
        for study in studies:
            distributions = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in "xy"}
            values = [quality, 1.0][: len(study.directions)]
            study.add_trial(optuna.create_trial(params={"x": x, "y": y}, distributions=distributions, values=values))
    alone, timed = (importances(study) for study in studies)
    assert alone == timed
    assert list(alone) == ["x", "y"]
    assert alone["x"] > 0.8
    assert not recwarn.list


# --- studies without networks ----------------------------------------------------------------------


def begin(storage: FileStorage | DatabaseStorage, *, resume: bool = True, **identity: Any) -> optuna.Study:
    known = {"parents": [["a", "1"], ["b", "2"]], **identity}
    return open_study(storage, "depfuse", known, {"x": 0.5}, labelled=False, timed=False, seed=0, resume=resume)


def test_what_is_behind_is_pruned(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "study.log")
    study = begin(storage)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        for size in (250, 500):
            trial.report(x, size)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    Search(study, storage, objective, 30).run()  # type: ignore[arg-type]
    storage.close()
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    best = min(trial.params["x"] for trial in pruned)
    assert len(study.trials) == 30
    assert 3 <= len(pruned) < 25
    assert all(trial.last_step == 250 for trial in pruned)
    assert study.best_value < best


def test_trials_of_a_worker_that_is_gone_are_run_again_and_those_of_others_are_left(tmp_path: Path) -> None:
    storage, other = FileStorage(tmp_path / "study.log"), FileStorage(tmp_path / "study.log")
    study = begin(storage)
    for worker in (storage, other):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        worker.begin(trial)
    lost = study.ask()
    lost.suggest_float("x", 0.0, 1.0)
    lost.set_user_attr("worker", "was killed")
    storage.take_over(study)
    storage.take_over(study)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.RUNNING, TrialState.RUNNING, TrialState.FAIL, TrialState.WAITING]
    assert study.trials[3].params == study.trials[2].params
    other.close()
    storage.take_over(study)
    assert study.trials[1].state == TrialState.FAIL
    storage.close()


# --- bad input -------------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Check that a command was refused with one line that holds the words."""
    return partial(assert_one_sentence, capsys)


def test_settings_that_cannot_be_searched_are_refused(tmp_path: Path, refused) -> None:
    refused(tune(tmp_path, parents=digits_files("a")), "at least two parents")
    refused(tune(tmp_path, "--distil", "2"), "leave out train.distil")
    refused(tune(tmp_path, "--calibration", "1290"), "which leaves 7 to judge children by")
    (tmp_path / "file").write_text("")
    refused(tune(tmp_path / "file"), "is a file: give a folder")
    (tmp_path / "all.json").write_text(json.dumps(Recipe().model_dump(mode="json")))
    refused(tune(tmp_path, "--recipe", str(tmp_path / "all.json")), "nothing is left to search")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "all.json"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "no URL of a database"),
        ("postgresql://me:x@host:secret/studies", "no URL of a database"),
        ("postgresql://me:very@secret@host/studies", "written %40"),
        ("postgresql://me:secret@127.0.0.1:1/studies", r"me:\*\*\*@127.0.0.1:1/studies cannot be reached"),
        ("postgresql://127.0.0.1:1/studies?user=me&password=secret", "127.0.0.1:1/studies cannot be reached"),
        ("sqlite:////no/such/folder/study.db", "cannot be reached: unable to open database file"),
        ("firebird://me:secret@host/x", "needs a driver that is not installed"),
    ],
)
def test_a_storage_that_cannot_be_reached(url: str, words: str) -> None:
    if words.endswith("reached") and url.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="needs a driver for PostgreSQL: pip install 'depfuse[postgresql]'")
    with pytest.raises(StudyError, match=words) as error:
        DatabaseStorage(url, 20)
    assert "secret" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Query string")
@pytest.mark.parametrize("joined", [False, True])
def test_no_file_holds_the_password_of_a_database(tmp_path: Path, joined: bool) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}?password=secret"
    words = [f"--storage={url}"] if joined else ["--storage", url]
    assert tune(tmp_path / "out", *words, trials=1) == 0
    report = StudyReport.model_validate_json((tmp_path / "out" / "study.json").read_bytes())
    assert f"sqlite:///{tmp_path / 'study.db'}" in " ".join(report.command)
    assert not [path for path in (tmp_path / "out").iterdir() if b"secret" in path.read_bytes()]


def test_a_storage_of_an_older_schema(tmp_path: Path, refused) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    DatabaseStorage(url, 20).close()
    with sqlite3.connect(tmp_path / "study.db") as base:
        base.execute("update alembic_version set version_num = 'v1.3.0.a'")
        base.execute("update version_info set schema_version = 9, library_version = '1.3.0'")
    refused(tune(tmp_path / "out", "--storage", url), "tables of another version of Optuna", "upgrade")


def test_a_database_that_goes_away(tmp_path: Path) -> None:
    storage = DatabaseStorage(f"sqlite:///{tmp_path / 'study.db'}", 20)

    def objective(trial: optuna.Trial) -> float:
        with sqlite3.connect(tmp_path / "study.db") as base:
            base.execute("drop table trial_params")
        return trial.suggest_float("x", 0.0, 1.0)

    search = Search(begin(storage), storage, objective, 2)  # type: ignore[arg-type]
    with pytest.raises(StudyError, match=r"study.db can no longer be reached: no such table: trial_params$"):
        search.run()
    storage.close()


def test_a_damaged_file_and_another_study(tmp_path: Path, refused) -> None:
    (tmp_path / "study.log").write_text("no study\nat all\n")
    refused(tune(tmp_path, "--resume"), "is no study, or is damaged")
    url = f"sqlite:///{tmp_path / 'study.db'}"
    storage = DatabaseStorage(url, 20)
    optuna.create_study(storage=storage.optuna, study_name="depfuse").ask()
    storage.close()
    refused(tune(tmp_path, "--resume", "--storage", url), "is not one of depfuse tune", "--study")


def test_a_study_of_something_else(tmp_path: Path, refused, capsys) -> None:
    parents = [str(tmp_path / Path(path).name) for path in digits_files("a", "b")]
    for source, path in zip(digits_files("a", "b"), parents, strict=True):
        shutil.copy(source, path)
    out = tmp_path / "out"
    assert tune(out, trials=1, parents=parents) == 0
    capsys.readouterr()
    refused(tune(out, trials=1, parents=parents), "go on with it by --resume")
    refused(tune(out, "--resume", parents=digits_files("a", "b")[::-1]), "of other parents", "is not")
    refused(tune(out, "--resume", "--solver", "emd", parents=parents), "other settings that are kept")
    refused(tune(out, "--resume", "--labels", "50", parents=parents), "other images to judge by")
    changed = read_checkpoint(parents[1])
    assert changed.card is not None
    key = next(iter(changed.state))
    write_checkpoint(parents[1], {**changed.state, key: changed.state[key] + 1}, changed.card)
    refused(tune(out, "--resume", parents=parents), "digits-b.safetensors has changed since")
    Path(parents[1]).unlink()
    refused(tune(out, "--resume", parents=parents), "digits-b.safetensors")
    assert len(found(out)) == 1


def test_identity_is_kept_with_the_study(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "study.log")
    assert begin(storage, judged=100).user_attrs[IDENTITY]["judged"] == 100
    with pytest.raises(StudyError, match="already: go on with it by `resume=True`"):
        begin(storage, resume=False, judged=100)
    with pytest.raises(StudyError, match="of 2 parents, not 3"):
        begin(storage, judged=100, parents=[["a", "1"], ["b", "2"], ["c", "3"]])
    assert begin(storage, judged=100).trials[0].state == TrialState.WAITING
    storage.close()


# --- several workers -------------------------------------------------------------------------------


@pytest.fixture
def server() -> str:
    """URL of a database of a PostgreSQL server."""
    url = os.environ.get("DEPFUSE_POSTGRESQL")
    if url is None:
        pytest.skip("needs a PostgreSQL server: run it by .ci/with-postgresql")
    return url


@pytest.mark.slow
def test_four_workers_of_which_one_is_killed(server: str, tmp_path: Path) -> None:
    trials = 16
    out = tmp_path / "out"
    command = [sys.executable, "-m", "depfuse", "tune", *digits_files("a", "b"), *QUICK.split(), "--resume", "--quiet"]
    name = uuid.uuid4().hex
    command += ["--storage", server, "--study", name, "--heartbeat", "5", "--trials", str(trials), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, env=environment) for _ in range(4)]
    storage = DatabaseStorage(server, 5)
    try:
        deadline = time.monotonic() + 600
        while True:  # kill the first one in the middle of a trial of its own, with others behind it
            assert time.monotonic() < deadline
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.2)
            with_study = [s.study_name for s in optuna.get_all_study_summaries(storage=storage.optuna)]
            if name in with_study:
                study = optuna.load_study(study_name=name, storage=storage.optuna)
                states = [trial.state for trial in study.trials]
                if states.count(TrialState.COMPLETE) >= 2 and states.count(TrialState.RUNNING) == 4:
                    break
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        workers[0] = subprocess.Popen(command, env=environment)
        assert [worker.wait(timeout=900) for worker in workers] == [0] * 4
    finally:
        for worker in workers:
            worker.kill()
    study = optuna.load_study(study_name=name, storage=storage.optuna)
    counted = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(counted) == trials
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    again = [trial for trial in study.trials if "failed_trial" in trial.system_attrs]
    assert len(again) == 1
    lost = study.trials[again[0].system_attrs["failed_trial"]]
    assert lost.state == TrialState.FAIL
    assert again[0].state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert lost.params.items() <= again[0].params.items()
    written = set(found(out))
    assert written == {trial.number for trial in counted if trial.user_attrs["result"]["recipe"]}
    storage.close()


def test_a_worker_waits_for_the_one_that_creates_the_study(tmp_path: Path) -> None:
    """Whatever step the other one has reached, nothing but its whole study is opened."""
    storage = FileStorage(tmp_path / "study.log")
    created = optuna.create_study(storage=storage.optuna, study_name="depfuse", direction="minimize")
    with ThreadPoolExecutor(1) as worker:
        opened = worker.submit(begin, storage, judged=100)
        time.sleep(0.3)
        assert not opened.done()
        created.set_user_attr(IDENTITY, {"parents": [["a", "1"], ["b", "2"]], "judged": 100})
        time.sleep(0.3)
        assert not opened.done()
        created.enqueue_trial({"solver": "emd"})
        trials = opened.result(timeout=5).trials
    assert [trial.state for trial in trials] == [TrialState.WAITING]


def test_four_workers_open_one_new_study_at_the_same_time(tmp_path: Path) -> None:
    storages = [FileStorage(tmp_path / "study.log") for _ in range(4)]
    with ThreadPoolExecutor(4) as workers:
        studies = list(workers.map(partial(begin, judged=100), storages))
    assert all(len(study.trials) == 1 for study in studies)


def numbers(outputs: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, outputs)
    )


@pytest.mark.parametrize(
    ("task", "outputs", "labelled", "measure"),
    [
        ("regression", 3, True, "R2"),
        ("regression", 3, False, "squared error"),
        ("multilabel", 3, True, "AUROC"),
        ("multilabel", 3, False, None),
        ("binary", 1, True, None),
    ],
)
def test_children_are_judged_by_their_task(task, outputs, labelled, measure) -> None:
    """Three numbers were judged as scores of three classes."""
    images = torch.randint(0, 256, (120, 1, 8, 8), dtype=torch.uint8)
    targets = images.float().reshape(120, -1)[:, :outputs] / 255
    labels = targets if task == "regression" else (targets > 0.5).long()
    data = DataSet("drawn", (), Split(images, labels), None, Preprocessing())
    torch.manual_seed(0)
    parents = [numbers(outputs).eval(), numbers(outputs).eval()]
    recipe = Recipe.create(preset="fast", task=task, **{"calibration.images": 60})
    objective = Objective(Space(2, {}), recipe, Parents(parents), data, judged=40, labelled=labelled)
    quality = objective.quality
    found = [quality(parent) for parent in parents]
    judged = calibration_loader(data, 100).between(60, 100)
    with torch.no_grad():
        outputs_of = [torch.cat([parent(batch) for batch, _ in judged]) for parent in parents]
    chosen = data.train.take(calibration_order(120, 0)[60:100]).labels
    if labelled:
        scorer = quality._meaning.scored
        wanted = []
        for own in outputs_of:
            tally = scorer.tally()
            tally.add(own, chosen)
            wanted.append(tally.scores().value)
        assert found == pytest.approx(wanted)
    else:
        scored = quality._meaning.task
        target = scored.mean(outputs_of, (0.5, 0.5))
        assert found[0] == pytest.approx(
            min(
                float(scored.losses(scale * outputs_of[0], target).mean())
                for scale in (SCALES if scored.scalable else (1.0,))
            ),
            rel=1e-4,
        )
    assert quality.measure == measure
    assert (
        Judged(labelled, measure).title
        == {
            "R2": "held-out R2",
            "squared error": "held-out squared error",
            "AUROC": "held-out AUROC (%)",
            None: "held-out accuracy (%)" if labelled else "held-out disagreement (nats)",
        }[measure]
    )
