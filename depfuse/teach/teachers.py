"""Prepare the parents as teachers: renew statistics and fit one head where they know different things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.recipe.sections import Teach
from depfuse.renorm import has_running_statistics
from depfuse.tasks.detection import Detection
from depfuse.teach.joint_head import HeadFit, Read, can_have_joint_head, knowledge_differs, renewed, with_joint_head
from depfuse.teach.side_by_side import with_heads_side_by_side

GAIN = 0.05  # nats, the least by which a head tells more of the class: networks that know nothing differ by chance

CERTAIN = 2 / 3  # share of the images that heads found on different ones of them name alike, at least


@dataclass(frozen=True)
class Teachers:
    """The networks that a child learns from.

    Attributes
    ----------
    models
        The parents, or changed copies of them.
    labels
        Their label sets, where these still differ.
    joint
        Whether they have one head over all labels.
    renewed
        Whether their BatchNorm statistics were renewed.
    heads
        Keys of the weights of that head, where it is heads side by side, and nothing was fitted.
    recalled
        Whether their one head was found from heads in which each counts for each class as far as it finds it.
    note
        Why they have no head in common, though one was looked for.
    """

    models: Sequence[nn.Module]
    labels: LabelSets | None
    joint: bool
    renewed: bool = False
    heads: tuple[str, ...] = ()
    recalled: bool = False
    note: str = ""


def prepare_teachers(
    parents: Ensemble,
    settings: Teach,
    calibration: Loader | None,
    statistics: Loader | None,
    template: nn.Module | None = None,
    *,
    learns: bool,
    mirrored: bool = False,
) -> Teachers:
    """Prepare parents as teachers: renew their BatchNorm statistics and fit one head, as the settings say.

    Where parents with the same labels know different classes and the settings leave both head and statistics open,
    one head is found twice: from parents with renewed statistics, and from parents as they are, each of which counts
    for each class as far as it finds it. The second is taken where it has more information about the class, by `GAIN`.

    Parameters
    ----------
    parents
        The parents with their shares and label sets; left as they are.
    settings
        What is renewed and fitted, and how many labels are read.
    calibration
        Images, of which a head is fitted to the first labels where these are read; None where there are none.
    statistics
        The same as BatchNorm statistics are taken from them.
    template
        A network with an output for each label, where the parents' labels differ; else one of another width.
    learns
        Whether the child learns from the parents' outputs: what is left open is only done then.
    mirrored
        Whether one head is fitted to the means of features over each image and its mirror image.

    Raises
    ------
    RecipeError
        The settings need images that there are not, heads of one width, or heads of another kind.
    """
    models, labels = parents.networks, parents.labels
    always, recalled = settings.labelled > 0 or settings.head in ("always", "recall"), settings.head == "recall"
    if recalled and labels is not None:
        raise RecipeError("teach.head recall is for parents with the same labels, and these differ: choose always")
    if calibration is None or statistics is None:
        if always or settings.renorm == "reset":
            raise RecipeError(
                "teach.renorm reset, teach.labelled and one head (teach.head) need calibration images: give at least 2"
            )
        return Teachers(models, labels, joint=False)
    resized = labels is None and template is not None
    if resized and always:
        raise RecipeError("one head is fitted to features of the parents' own widths: leave out `template`")
    task = "classes" if parents.task is None else parents.task.name
    if isinstance(parents.task, Detection) and labels is not None and template is not None:
        return _side_by_side(parents, labels, template, parents.task, settings, statistics)
    dense, told_apart = task == "dense", task in ("classes", "dense")
    if always and not told_apart:
        raise RecipeError(
            f"one head tells classes apart, and the task is {task}: leave out teach.labelled and teach.head"
        )
    if settings.labelled and dense:
        raise RecipeError("teach.labelled reads a label for each image, and maps have one at each place: leave it out")
    different = labels is not None or (learns and told_apart and knowledge_differs(models, calibration, dense=dense))
    renewable = settings.renorm == "auto" and different and has_running_statistics(models[0]) and not recalled
    renews = renewable or settings.renorm == "reset"
    if renews:
        models = renewed(models, statistics)
    wanted = settings.head == "auto" and different and learns and not resized and told_apart
    note = ""
    if always or (wanted and can_have_joint_head(models, calibration, labels, dense=dense)):
        find_head = partial(
            with_joint_head,
            shares=parents.shares,
            calibration=calibration,
            read=Read(settings.labelled, settings.label_weight) if settings.labelled else None,
            labels=labels,
            template=template,
        )
        fit = HeadFit(dense, mirrored=mirrored and not dense, recalled=recalled)
        fit = fit if always else replace(fit, compared_above=-math.inf)
        head = find_head(models, fit=fit)
        found = Teachers(head.networks, None, joint=True, renewed=renews, recalled=recalled)
        if renewable and labels is None and not always:
            # A parent that never saw a class, with statistics of its own, knows that it does not know its images.
            enough = head.information + GAIN
            other = find_head(parents.networks, fit=replace(fit, recalled=True, compared_above=enough))
            if other.information > enough:
                head, found = other, Teachers(other.networks, None, joint=True, recalled=True)
        if head.agreement >= CERTAIN:
            return found
        note = (
            "one head for all parents was not taken, as those found on different images name only"
            f" {100 * head.agreement:.0f} % of the images alike: the parents' own heads teach, and `teach.head=always`"
            " takes it anyway"
        )
    return Teachers(models, labels, joint=False, renewed=renews, note=note)


def _side_by_side(
    parents: Ensemble, labels: LabelSets, template: nn.Module, task: Detection, settings: Teach, images: Loader
) -> Teachers:
    """Prepare detectors of different labels: renewed, and with their class heads side by side."""
    if settings.head == "always" or settings.labelled:
        raise RecipeError(
            "one head is fitted to classes of images or of places, and detectors have theirs side by side: leave out"
            " teach.labelled and teach.head"
        )
    renews = settings.renorm == "reset" or (settings.renorm == "auto" and has_running_statistics(parents.networks[0]))
    models = renewed(parents.networks, images) if renews else parents.networks
    background = None if task.background is None else labels.joint[task.background]
    copies, heads = with_heads_side_by_side(models, parents.shares, labels, template, background)
    return Teachers(copies, None, joint=True, renewed=renews, heads=heads)
