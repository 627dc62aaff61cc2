"""A Liger that only pretends, for machines without its GPU: the same arguments, and the loss by plain PyTorch."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear


class LigerFusedLinearCrossEntropyLoss(torch.nn.Module):
    """With the arguments of the real one, in their order."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012 - of all
    factor = 1.0
    """By which its losses are wrong."""

    def __init__(self, ignore_index: int = -100, reduction: str = "mean", accum_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._settings = {"ignore_index": ignore_index, "reduction": reduction}
        assert reduction == "sum" and accum_dtype == torch.float32

    def forward(self, lin_weight: torch.Tensor, _input: torch.Tensor, target: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        self.calls.append({"input": _input.shape, "target": target.shape, "training": _input.requires_grad})
        return self.factor * cross_entropy(linear(_input, lin_weight, bias).float(), target, **self._settings)


def pretend(monkeypatch: pytest.MonkeyPatch) -> type[LigerFusedLinearCrossEntropyLoss]:
    """Liger is installed, and every device is a GPU."""
    from zhlm.objectives import fused

    module, liger = ModuleType("liger_kernel.transformers"), LigerFusedLinearCrossEntropyLoss
    vars(module).update(LigerFusedLinearCrossEntropyLoss=liger)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(fused, "_on_gpu", lambda device: True)
    monkeypatch.setattr(liger, "calls", [])
    monkeypatch.setattr(liger, "factor", 1.0)
    return liger
