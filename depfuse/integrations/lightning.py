"""Lightning: load a checkpoint into one's own module, and fuse at the end of training.

The smallest example fuses a run with an earlier one, on the batches it was trained on::

    fusing = FuseCallback(["earlier.ckpt"], out="child.ckpt")
    lightning.Trainer(max_epochs=5, callbacks=[fusing]).fit(module, train_batches)
    print(fusing.result)
    child = Lit.load_from_checkpoint("child.ckpt")
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from depfuse.errors import ArchitectureError, DepfuseError, RecipeError
from depfuse.fusion.arguments import CalibrationLike, RecipeLike
from depfuse.fusion.pipeline import fuse
from depfuse.fusion.result import FusionResult
from depfuse.io.atomic_files import check_writable, replacing
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into
from depfuse.models.registry import made_by
from depfuse.networks.copying import unwrap
from depfuse.recipe.presets import as_recipe

if TYPE_CHECKING or find_spec("lightning") is not None:
    from lightning.pytorch import Callback
else:

    class Callback:
        """Stand in for Lightning's callback, of which only a description can be read without Lightning."""

        def __init__(self) -> None:
            raise DepfuseError("a callback for Lightning needs Lightning: pip install 'depfuse[lightning]'")


def load(path: str | Path, module: nn.Module | type[nn.Module], *, key: str | None = None) -> nn.Module:
    """Load a checkpoint into a LightningModule, in evaluation mode, without running code that is in the file.

    Parameters
    ----------
    path
        The file; see `read_checkpoint`.
    module
        The module, whose weights are replaced; or its class, which is built by the file's hyper-parameters, as far as
        these are numbers and words.
    key
        Where the weights are in the file, where it holds several sets.

    Raises
    ------
    CheckpointError
        The file cannot be read, or its weights do not fit; a module that was given is unchanged.
    ArchitectureError
        The class needs arguments that the file does not have.
    """
    checkpoint = read_checkpoint(path, key)
    made = module if isinstance(module, nn.Module) else made_by(module, checkpoint.settings)
    load_into(made, checkpoint)
    return made.eval()


class FuseCallback(Callback):
    """Fuse the trained module with others at the end of `Trainer.fit`; the module itself keeps its weights.

    What can be wrong with the request is said before training begins.

    Parameters
    ----------
    others
        Checkpoints of other runs of the same module. Where None, those that the Trainer's ModelCheckpoint kept
        (`save_top_k` of two or more) are fused with each other instead; they share a start, so that their plain
        average is often as good, which is said.
    recipe
        Settings of the fusion; the defaults where None.
    batches
        Unlabelled samples, anything that `fuse` takes for calibration; the training batches where None.
    out
        Where a checkpoint with the child's weights goes, as the Trainer writes it, without the optimizer's state.

    Attributes
    ----------
    result
        The fusion, once there was one.
    """

    def __init__(
        self,
        others: Sequence[str | Path] | None = None,
        *,
        recipe: RecipeLike | None = None,
        batches: CalibrationLike | None = None,
        out: str | Path | None = None,
    ) -> None:
        super().__init__()
        if isinstance(others, (str, Path)) or (others is not None and not others):
            raise RecipeError("other runs are given as a list of checkpoints, such as ['earlier.ckpt']")
        self._others = None if others is None else [Path(path) for path in others]
        self._recipe, self._batches, self._out = as_recipe(recipe), batches, None if out is None else Path(out)
        self._loaded: list[nn.Module] = []
        self.result: FusionResult | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the request, and load the other runs.

        Raises
        ------
        RecipeError
            There is more than one process, or nothing to fuse with.
        CheckpointError
            Another run's file cannot be read or does not fit, or `out` cannot be written.
        """
        if trainer.world_size > 1:
            raise RecipeError(
                f"FuseCallback fuses in one process, and there are {trainer.world_size}: fuse the checkpoints after the"
                " training, by depfuse.fuse"
            )
        if self._out is not None:
            check_writable(self._out)
        if self._others is None:
            _keeper(trainer)
        self._loaded = [load(path, copy.deepcopy(pl_module)) for path in self._others or ()]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raise `RecipeError` where the training has several loaders, and nothing says which samples are taken."""
        if self._batches is None and _has_several(trainer.train_dataloader):
            raise RecipeError(
                "the training has several loaders: give FuseCallback the samples by which networks are fused, as"
                " batches"
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Fuse, and write the child.

        Raises
        ------
        RecipeError
            ModelCheckpoint kept fewer than two checkpoints.
        GroupError, ArchitectureError, DataError
            See `fuse`.
        """
        own = copy.deepcopy(pl_module)
        parents = [own, *self._loaded]
        if self._others is None:
            kept = sorted(_keeper(trainer).best_k_models)
            if len(kept) < 2:
                raise RecipeError(f"there are {len(kept)} checkpoints of ModelCheckpoint: two or more are fused")
            parents = [load(path, copy.deepcopy(pl_module)) for path in kept]
        batches = trainer.train_dataloader if self._batches is None else self._batches
        self.result = fuse([parent.to(pl_module.device).eval() for parent in parents], self._recipe, batches)
        if self._out is not None:
            self._write(trainer, pl_module)

    def _write(self, trainer: Any, module: nn.Module) -> None:
        """Let the Trainer write the module with the child's weights, and give it its own ones back."""
        assert self.result is not None
        assert self._out is not None
        network, child = unwrap(module), unwrap(self.result.child).state_dict()
        own = copy.deepcopy(network.state_dict())
        if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in child.items()}:
            raise ArchitectureError(
                f"the child has other shapes than {type(module).__name__}, whose checkpoint cannot hold it: name no"
                " file, and take the child of the result"
            )
        try:
            network.load_state_dict(child)
            with replacing(self._out) as temporary:
                trainer.save_checkpoint(temporary, weights_only=True)
        finally:
            network.load_state_dict(own)


def _has_several(loader: Any) -> bool:
    """Tell a loader of batches from a list, mapping or `CombinedLoader` of loaders."""
    loaders = getattr(loader, "flattened", loader)
    own = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
    return isinstance(own, (list, tuple)) and any(isinstance(each, DataLoader) for each in own)


def _keeper(trainer: Any) -> Any:
    """Return the Trainer's ModelCheckpoint that keeps several checkpoints."""
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "save_top_k", 1) not in (0, 1) and hasattr(callback, "best_k_models"):
            return callback
    raise RecipeError(
        "there is nothing to fuse with: give checkpoints of other runs, or let the Trainer keep several by"
        " ModelCheckpoint(save_top_k=3, monitor=...)"
    )
