"""One frozen, validated description of one fusion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError, ValidationInfo, model_validator

from depfuse.errors import RecipeError
from depfuse.recipe.arrange import arrange, leaves, places
from depfuse.recipe.contradictions import contradictions
from depfuse.recipe.fields import OneOf, Section, first_mistake, setting
from depfuse.recipe.goals import GOALS, Best, Child, Goal
from depfuse.recipe.old_names import OLD, read_old
from depfuse.recipe.preset_files import over_preset, preset_names
from depfuse.recipe.reads import holds
from depfuse.recipe.refits import REFITS, AutoRefit, Refit, Ridge, refits_of
from depfuse.recipe.renorms import RENORMS, AutoRenorm, Renorm, renorms_of
from depfuse.recipe.sections import Align, Calibration, Merge, Teach, Train
from depfuse.recipe.tasks import TASKS, AutoTask, TaskChoice

WHOLE = {"whole": True}
"""Context in which settings are validated that are arranged already, the preset's among them."""


class Recipe(Section):
    """Settings of a fusion: everything but the parents and the data.

    A setting is named by its path, such as `align.solver.regularisation`. Flat recipes of earlier versions load by a
    table of old names (`depfuse.recipe.old_names`). Settings are given over those of the preset that they name:
    `Recipe(preset="best", seed=1)`. `Recipe.create` raises `RecipeError` for a contradictory recipe,
    and for one with a setting that nothing reads.
    """

    preset: str = setting("standard", "the preset that these settings began with")
    task: Annotated[SerializeAsAny[TaskChoice], BeforeValidator(TASKS)] = setting(
        AutoTask(), "what the networks' outputs mean"
    )
    align: Align = setting(Align(), "which channel of one parent is which channel of another")
    merge: Merge = setting(Merge(), "how matched parents become one network")
    refit: Annotated[SerializeAsAny[Refit], BeforeValidator(REFITS)] = setting(
        AutoRefit(),
        "solve the layers in closed form for what the parents do",
        search=OneOf(by=("align.solver", refits_of)),
    )
    renorm: Annotated[SerializeAsAny[Renorm], BeforeValidator(RENORMS)] = setting(
        AutoRenorm(), "undo what averaging does to the signal", search=OneOf(by=("refit", renorms_of))
    )
    teach: Teach = setting(Teach(), "how the parents are prepared as teachers of the child")
    train: Train = setting(Train(), "how the child is trained on")
    calibration: Calibration = setting(Calibration(), "the images that statistics are taken from")
    goal: Annotated[SerializeAsAny[Goal], BeforeValidator(GOALS)] = setting(Child(), "which network comes out")
    seed: int = setting(0, "seed of every random choice", ge=0, le=2**63 - 1)

    @model_validator(mode="before")
    @classmethod
    def _in_sections(cls, settings: Any, info: ValidationInfo) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        return settings if info.context is WHOLE else arrange(cls, *over_preset(settings)).nested

    @model_validator(mode="after")
    def _without_contradictions(self) -> Recipe:
        for sentence in contradictions(self):
            raise ValueError(sentence)
        return self

    @classmethod
    def create(cls, settings: Mapping[str, Any] | None = None, /, **named: Any) -> Recipe:
        """Build a recipe of settings, over those of the preset that they name.

        Raises
        ------
        RecipeError
            A setting is wrong, or nothing reads it; the sentence names the first.
        """
        return cls.with_read(*over_preset({**(settings or {}), **named}))

    @classmethod
    def with_read(cls, settings: Mapping[str, Any], keep: Collection[str] | None = ()) -> Recipe:
        """Build a recipe of the settings that are read; unread ones raise an error if in `keep`, or if that is None."""
        try:
            return cls.model_validate(arrange(cls, settings, keep).nested, context=WHOLE)
        except ValidationError as error:
            where, message = first_mistake(error)
            raise RecipeError(f"recipe{f' setting {where}' if where else ''}: {message}") from None
        except ValueError as error:
            raise RecipeError(f"recipe: {error}") from None

    def changed(self, settings: Mapping[str, Any] | None = None, /, **named: Any) -> Recipe:
        """Return the recipe with other settings, validated as `create` does.

        Old settings that nothing reads any more return to their defaults; given ones that nothing reads raise an error,
        and so does another preset, of which the name alone would come.
        """
        changes = {**(settings or {}), **named}
        name = changes.get("preset", self.preset)
        if name != self.preset and name in preset_names():
            raise RecipeError(
                f"a preset is more than its name: begin with Recipe(preset={name!r}), and change the settings of that"
            )
        return Recipe.with_read({**self.differing, **changes}, keep=changes)

    if not TYPE_CHECKING:  # depfuse itself reads sections

        def __getattr__(self, name: str) -> Any:
            """Read a setting by its old name, as in `Recipe(solver="emd")`."""
            return read_old(name, self.settings) if name in OLD else super().__getattr__(name)

    @property
    def settings(self) -> dict[str, Any]:
        """Path -> value of all settings."""
        return leaves(self)

    @property
    def differing(self) -> dict[str, Any]:
        """Path -> value of the settings that differ from their defaults."""
        settings = self.settings
        existing = [place for place in places(type(self)) if holds(place.case, settings)]
        return {place.path: settings[place.path] for place in existing if settings[place.path] != place.default}

    @property
    def refits(self) -> bool:
        """Whether the child is refitted; False for `auto`, which is resolved later."""
        return self.refit.closed_form

    @property
    def candidates(self) -> Ridge | Best | None:
        """Targets, steps and augmentation of a refit by ridge, of the child or a family; None where there is none."""
        return self.goal if isinstance(self.goal, Best) else self.refit if isinstance(self.refit, Ridge) else None

    @property
    def renorm_after(self) -> Renorm:
        """How the child is renormalised once it has been refitted."""
        return RENORMS("none") if self.renorm.name == "auto" and self.refit.name == "ridge" else self.renorm

    @property
    def renorm_alone(self) -> Renorm:
        """How networks without parents, such as the averages compared with, are renormalised."""
        return RENORMS("auto") if self.renorm.parents or self.refit.name == "ridge" else self.renorm

    @property
    def learns(self) -> bool:
        """Whether the child learns from the parents' outputs, not from their weights alone."""
        return self.refits or self.train.teaches or self.goal.name == "best"

    @property
    def trains(self) -> bool:
        """Whether the child is trained on."""
        return self.train.teaches or self.train.finetune > 0

    def teaches_nobody(self, because: str = "") -> str:
        """Say that a head was asked for which would teach the child, and nothing teaches it; else empty.

        Such a head suits the features of the parents side by side: averaged into the child, it is worse than the heads
        were (digits, solver emd without a refit, 50 labels: 52.8 per cent, where without labels it is 87.0).

        Parameters
        ----------
        because
            Why nothing teaches the child, where its refit was left open.
        """
        if self.refit.name != "none" or self.learns or self.merge.weights_by != "network":
            return ""
        nothing = f"nothing teaches it{f' ({because})' if because else ''}"
        choice = "choose a refit, train.distil or goal best, or leave"
        if self.teach.labelled:
            return f"labelled images are read for a head that teaches the child, and {nothing}: {choice} the labels out"
        if self.teach.head in ("always", "recall"):
            return f"teach.head {self.teach.head} finds a head that teaches the child, and {nothing}: {choice} it out"
        return ""

    def shares(self, parents: int) -> tuple[float, ...]:
        """Return one share per parent, summing to one."""
        return self.merge.shares(parents)
