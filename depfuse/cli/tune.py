"""`depfuse tune`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depfuse.cli.console import Screen
from depfuse.cli.help import FURTHER, Further
from depfuse.cli.importing import importing
from depfuse.cli.named import check_family, read_named
from depfuse.cli.options import Checkpoints, DataOptions, KeyOption, RecipeOptions, RunOptions, TrustOption
from depfuse.cli.spread import spread
from depfuse.cli.wording import in_options
from depfuse.errors import CheckpointError, DataError, DepfuseWarning, RecipeError, StudyError
from depfuse.io.atomic_files import replacing
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import by_path, may_be_read
from depfuse.report.study import STUDY, StudyReport
from depfuse.report.tables import search_sentence, search_table
from depfuse.study.search_space import Space, unsearched
from depfuse.study.trials import TrialRecord, best_first, pareto_front
from depfuse.text import counted

if TYPE_CHECKING:
    from depfuse.cli.inputs import Inputs

FILE = "study.log"
PAGE = "report.html"
SHARED = ("calibration.images", "calibration.batch_size", "seed")  # settings of all trials
SHOWN = 5  # trials in the table


@spread
def tune(
    context: typer.Context,
    parents: Checkpoints,
    data: DataOptions,
    settings: Annotated[RecipeOptions, Further("weights", "distil")],
    options: RunOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where trial-N.json of each trial, study.json and report.html with its drawings are written.",
        ),
    ] = Path("tune"),
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Trials that the study shall have, those of all workers together.")
    ] = 100,
    labels: Annotated[
        int,
        typer.Option(
            "--labels",
            min=0,
            help="Read the labels of so many held-out training images, and search for accuracy on them."
            " Default: none, and children are judged by their cross-entropy under the parents' ensemble.",
        ),
    ] = 0,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out",
            min=1,
            help="Held-out training images to judge by where no labels are read.",
            rich_help_panel=FURTHER,
        ),
    ] = 2000,
    seconds: Annotated[
        bool,
        typer.Option(
            "--seconds", help="Search for fast fusions as well: the best for each time are found. Nothing is pruned."
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the study if it is there. Workers that share a study are all started with it."
        ),
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Keep the study in a database that several machines reach: postgresql://user:password@host/database."
            f" Default: the file {FILE} in the folder of --out.",
        ),
    ] = None,
    study: Annotated[
        str, typer.Option("--study", metavar="NAME", help="Name of the study.", rich_help_panel=FURTHER)
    ] = "depfuse",
    heartbeat: Annotated[
        int,
        typer.Option(
            "--heartbeat",
            min=1,
            help="Seconds between two signs of life in a database; after three missed ones others take a trial over.",
            rich_help_panel=FURTHER,
        ),
    ] = 20,
    arch: Annotated[
        list[str] | None,
        typer.Option("--arch", metavar="ARCH", help="What the networks are, as for `depfuse fuse`."),
    ] = None,
    key: KeyOption = None,
    trust: TrustOption = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            metavar="LABELS",
            help="Which labels a parent knows, as for `depfuse fuse`.",
            rich_help_panel=FURTHER,
        ),
    ] = None,
) -> None:
    """Search for the recipe with the best child; settings that are given are kept."""
    base = {} if settings.preset is None else settings.read().settings
    own = by_path(settings.given)
    given = _without_unread({**base, **own}, own)
    _check(given, parents, out)
    if storage is not None:
        from depfuse.study.storage import parse_url

        parse_url(storage)
    check_family(parents, read_named(parents, arch, data, classes, trust, key).architectures)
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        import optuna

        from depfuse.cli.inputs import read_inputs, read_template, say_all_are_used
        from depfuse.distributed.device import resolve_device
        from depfuse.report import describe_environment
        from depfuse.study.importances import importances
        from depfuse.study.objective import Objective
        from depfuse.study.records import record_of
        from depfuse.study.search import FINISHED, Search, open_study
        from depfuse.study.storage import DatabaseStorage, FileStorage, Storage

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    screen = Screen(options.quiet)
    judged = labels or held_out
    with screen.working() as work:
        work.step("reading networks and data")
        device = resolve_device(options.device)
        inputs = read_inputs(
            parents, arch, data, device, classes, fused=True, trust=trust, key=key, task=str(given.get("task", "auto"))
        )
        if labels and inputs.data.train.labels is None:
            raise DataError(f"{inputs.data_name} has no labels, and --labels needs them: leave it out")
        common = _common(given, inputs, judged)
        say_all_are_used(common, inputs.data)
        kept = {**given, **{path: common.settings[path] for path in SHARED}}
        space = Space(len(parents), kept)
        work.step("finding and proving channel groups")
        objective = Objective(
            space,
            inputs.recipe(common),
            inputs.parents(read_template(inputs, None, None)[1]),
            inputs.data,
            judged=judged,
            labelled=labels > 0,
            timed=seconds,
        )
        if objective.judged < labels:
            warnings.warn(
                f"--labels {labels:,} is more than are held out of the {counted(len(inputs.data.train), 'image')}:"
                f" the labels of {objective.judged:,} are read",
                DepfuseWarning,
                stacklevel=1,
            )
        place: Storage
        place = FileStorage(out / FILE) if storage is None else DatabaseStorage(storage, heartbeat)
        try:
            opened = open_study(
                place,
                study,
                _identity(inputs, kept, judged=judged, labelled=labels > 0, timed=seconds),
                space.defaults(),
                labelled=labels > 0,
                timed=seconds,
                seed=common.seed,
                resume=resume,
            )
            work.step("searching", total=trials)
            work.keeps("the trials that are finished are kept, and the same command with `resume` goes on with them")

            def note(trial: optuna.trial.FrozenTrial) -> None:
                _in_words(record_of(trial)).write(out)
                work.advance()

            Search(opened, place, objective, trials, note).run()
            with place.reached():
                records = [_in_words(record_of(trial)) for trial in opened.get_trials(states=FINISHED)]
                shares = importances(opened)
        finally:
            place.close()
        work.step("drawing")
        for record in records:
            record.write(out)
        ranked = best_first(records, labelled=labels > 0)
        if not ranked:
            raise StudyError(f"none of {len(records)} trials came to its end: {records[0].reason}")
        report = StudyReport(
            trials=records,
            importances=shares or None,
            labelled=labels > 0,
            measure=objective.quality.measure,
            timed=seconds,
            asked=trials,
            parents=[str(parent.path) for parent in inputs.checkpoints],
            architectures=list(inputs.architectures),
            data=inputs.data_name,
            calibration=common.calibration.images,
            judged=objective.judged,
            kept=kept,
            environment=describe_environment(inputs.device),
            command=_without_password(context.obj, place.shown),
        )
        _write(report, out)
    shown = pareto_front(records, labelled=labels > 0) if seconds else ranked[:SHOWN]
    screen.show(search_table(shown, report.by))
    screen.say(
        f"\n{search_sentence(records, report.by)}; "
        f"depfuse fuse --preset {out / f'trial-{ranked[0].trial}.json'} makes its child; {out / PAGE} shows all trials"
    )


def _in_words(record: TrialRecord) -> TrialRecord:
    """Say in options why a trial was given up."""
    return record.model_copy(update={"reason": None if record.reason is None else in_options(record.reason)})


def _without_unread(given: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Leave out settings of the preset that the user's own leave nothing to read, as `depfuse fuse` does."""
    fixed = unsearched(Recipe, given)
    return {path: value for path, value in given.items() if path in own or may_be_read(Recipe, path, fixed)}


def _check(given: dict[str, Any], parents: list[Path], out: Path) -> None:
    """Refuse what can be refused before anything is read."""
    if len(parents) < 2:
        raise RecipeError("a fusion needs at least two parents")
    fixed = unsearched(Recipe, given)
    for path in given:
        if not may_be_read(Recipe, path, fixed):
            Recipe.create(given)  # which says why
    recipe = Recipe.with_read(given)  # some trials may read what others do not
    recipe.shares(len(parents))
    recipe.align.check_numbers(len(parents))
    Space(len(parents), given)  # refuses where nothing is left to search
    if recipe.trains:
        raise RecipeError(
            "a search compares children as they are fused: leave out train.distil, train.self_training and"
            " train.finetune"
        )
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"--out {out} is a file: give a folder")


def _common(given: dict[str, Any], inputs: Inputs, judged: int) -> Recipe:
    """Collect the settings common to all recipes, with as many calibration images as leave some to judge by."""
    recipe = Recipe.with_read(given)
    if "calibration.images" in given:
        return recipe
    count = len(inputs.data.train)
    fewer = max(count - judged, 2 * count // 3)
    return recipe.changed({"calibration.images": min(recipe.calibration.images, fewer)})


def _identity(inputs: Inputs, kept: dict[str, Any], *, judged: int, labelled: bool, timed: bool) -> dict[str, Any]:
    """Describe what the study measures, see `open_study`."""
    identity = {
        "parents": [[str(parent.path), parent.digest] for parent in inputs.checkpoints],
        "data": f"{inputs.data_name}, {len(inputs.data.train)} training images",
        "judged": judged,
        "labelled": labelled,
        "timed": timed,
        "kept": kept,
        "networks": [
            list(inputs.architectures),
            None if inputs.labels is None else inputs.labels.sets,
            inputs.data.preprocessing.model_dump(mode="json"),
        ],
    }
    found: dict[str, Any] = json.loads(json.dumps(identity))  # as the storage will give it back
    return found


def _without_password(command: list[str], shown: str) -> list[str]:
    """Join the words of the command, without what may be a password in the storage's address."""
    words = []
    for before, word in zip(["", *command], command, strict=False):
        if before == "--storage":
            word = shown
        elif word.startswith("--storage="):
            word = f"--storage={shown}"
        words.append(word)
    return words


def _write(report: StudyReport, out: Path) -> None:
    """Write the study and its page; each takes its place when it is complete."""
    from depfuse.report.page import Run, Runs, write_page

    with replacing(out / STUDY) as path:
        path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_page(Runs(out, (Run(STUDY, report),), ()), out / PAGE)
