"""Watch the operations that run, without torch's compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode whose `__torch_dispatch__` torch leaves as it is; what it would wrap it in imports its compiler: seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
