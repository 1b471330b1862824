"""Settings of the tasks: what the networks' outputs mean, with the class of each. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from depfuse.recipe.fields import Choice, Registry


class TaskChoice(Choice):
    """What the networks' outputs mean.

    Attributes
    ----------
    place
        `module:class` of the `Task`; its `of` builds one from the parents' outputs.
    reads_outputs
        Whether it depends on the outputs for many images, and not on their shape alone.
    """

    place: ClassVar[str] = ""
    reads_outputs: ClassVar[bool] = False


class AutoTask(TaskChoice):
    """Chosen by what the parents' outputs for the calibration images tell, and said."""

    name: Literal["auto"] = "auto"


class NoTask(TaskChoice):
    """Outputs of which nothing is known: parents are matched and merged only."""

    name: Literal["none"] = "none"


class ClassesTask(TaskChoice):
    """One row of class scores for each image, of which the highest is the prediction."""

    place: ClassVar[str] = "depfuse.tasks.classes:Classes"

    name: Literal["classes"] = "classes"


class DenseTask(TaskChoice):
    """Maps of class scores, of any spatial dimensions."""

    place: ClassVar[str] = "depfuse.tasks.classes:Dense"

    name: Literal["dense"] = "dense"


class MultilabelTask(TaskChoice):
    """Several independent yes-or-no logits."""

    place: ClassVar[str] = "depfuse.tasks.labels:Labels"

    name: Literal["multilabel"] = "multilabel"


class BinaryTask(TaskChoice):
    """One yes-or-no logit."""

    place: ClassVar[str] = "depfuse.tasks.labels:Binary"

    name: Literal["binary"] = "binary"


class RegressionTask(TaskChoice):
    """Numbers, each compared in units of its spread: a row of them, or maps, sequences and images."""

    place: ClassVar[str] = "depfuse.tasks.regression:Regression"
    reads_outputs: ClassVar[bool] = True

    name: Literal["regression"] = "regression"


class FeaturesTask(TaskChoice):
    """Embeddings, of which the direction counts."""

    place: ClassVar[str] = "depfuse.tasks.features:Features"

    name: Literal["features"] = "features"


class WeightedTask(TaskChoice):
    """All tensors of a structure that count, each of a task of its own that is told as auto is."""

    place: ClassVar[str] = "depfuse.tasks.weighted:Weighted"

    name: Literal["weighted"] = "weighted"


class DetectionTask(TaskChoice):
    """Class scores at each place with boxes and other numbers beside them, of parents that know different classes."""

    place: ClassVar[str] = "depfuse.tasks.detection:Detection"

    name: Literal["detection"] = "detection"


TASKS = Registry(
    AutoTask,
    NoTask,
    ClassesTask,
    DenseTask,
    MultilabelTask,
    BinaryTask,
    RegressionTask,
    FeaturesTask,
    WeightedTask,
    DetectionTask,
)
