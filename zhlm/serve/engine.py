"""What runs inside Ray Serve's replicas."""

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase


class NoDownload(CallbackBase):  # type: ignore[misc]
    """The model is a folder that every node sees, so a replica need not look for downloads first (7 s of imports for nothing)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.ctx.run_init_node = False
