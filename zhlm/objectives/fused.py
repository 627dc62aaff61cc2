"""Cross-entropy without all logits in memory: the head's product and the loss in one kernel, Liger's, where that is installed.

While a batch's targets are with the head, its forward gives their loss in place of the logits; so the kernel runs inside the head's own
forward, where ZeRO-3 has gathered its weight. What a class does to logits behind its head (scaling, soft caps) would be done to the loss:
then the two losses disagree, and the plain one stays.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import distributed, nn

from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError
from zhlm.objectives.batch import IGNORED, Batch, logits_of, sum_nats

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-3}
"""Largest difference of the two losses, as a share of the plain one. Source: assumption; rounding of bfloat16 logits alone is 4e-3 each,
and its mean over a row's tokens far less."""


class _Head(nn.Linear):
    """A head that gives the loss of its targets, while it has some."""

    kernel: Callable[..., torch.Tensor]
    targets_N: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.targets_N is None:
            return super().forward(input)
        return self.kernel(self.weight, input.flatten(0, -2), self.targets_N, self.bias)


class Loss:
    """Summed cross-entropy of a batch's targets in nats, in float32: fused where it can be and agrees, else plain."""

    def __init__(self, model: nn.Module, config: RunConfig, device: torch.device) -> None:
        """`model`: with what is trained in it. Raises: ConfigError when `train.fused_loss` is on and it cannot be."""
        self._asked, self._tolerance = config.train.fused_loss, TOLERANCE[config.train.precision]
        self._head: Any = None
        self.facts: dict[str, Any] = {}
        """For metrics.jsonl: whether it is fused, and if not, why. Empty where nobody would expect it."""
        if self._asked == "off" or (self._asked == "auto" and not _on_gpu(device)):
            return
        head = _innermost_head(model)
        obstacle = _obstacle(config, head, device)
        kernel = _kernel() if not obstacle else None
        if kernel is None:
            self._stay_plain(obstacle or "liger_kernel is not installed or does not import; pip install liger-kernel")
            return
        head.kernel, head.targets_N, head.__class__ = kernel, None, _Head
        self._head, self.facts = head, {"fused_loss": True}

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return sum_nats(model, batch) if self._head is None else self._fused(model, batch)

    def compare(self, model: nn.Module, batch: Batch | None) -> None:
        """Stay with the fused loss only if it agrees with the plain one on the first row of all ranks' batches (None: there is no text to
        compare on). Collective.

        Raises: ConfigError when it does not, and `train.fused_loss` is on.
        """
        if self._head is None:
            return
        if batch is None:
            self._give_up("there is no held-out block to compare it on")
            return
        row = replace(batch, inputs={n: t[:1] for n, t in batch.inputs.items()}, targets_BT=batch.targets_BT[:1], fills_B=batch.fills_B[:1])
        was_training = model.training
        model.eval()
        problem = ""
        with torch.no_grad():
            plain = sum_nats(model, row).double()
            try:
                fused = self._fused(model, row).double()
            except Exception as error:  # a kernel that does not compile for this GPU fails in many ways
                problem, fused = f"it fails: {type(error).__name__}: {error}".splitlines()[0], torch.full_like(plain, math.nan)
        model.train(was_training)
        sums = torch.stack([plain, fused])
        distributed.all_reduce(sums)
        plain_nats, fused_nats = sums.tolist()
        if not abs(fused_nats - plain_nats) <= self._tolerance * abs(plain_nats):
            self._give_up(problem or f"on the first rows it is {fused_nats:.6g} nats, the plain one {plain_nats:.6g}")

    def _fused(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        self._head.targets_N = batch.targets_BT.flatten()
        try:
            return logits_of(model, batch)
        finally:
            self._head.targets_N = None

    def _give_up(self, why: str) -> None:
        self._head.__class__, self._head = nn.Linear, None
        self._stay_plain(why)

    def _stay_plain(self, why: str) -> None:
        if self._asked == "on":
            raise ConfigError(f"train: fused_loss is on, but {why}; set train.fused_loss: auto")
        self.facts = {"fused_loss": False, "why_plain": why}


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _innermost_head(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    return head.modules_to_save[head.active_adapters[0]] if hasattr(head, "modules_to_save") else head


def _obstacle(config: RunConfig, head: Any, device: torch.device) -> str:
    if not _on_gpu(device):
        return "the workers have no GPU"
    if config.objective.name != "causal":
        return f"the objective is {config.objective.name}, expected causal"
    if config.train.compile:
        return "train.compile is true"
    return "" if type(head) is nn.Linear else f"the head is a {type(head).__name__}, expected a plain Linear"


def _kernel() -> Callable[..., torch.Tensor] | None:
    """(weight VD, input ND, targets N, bias V or None) -> the sum over targets. None without Liger."""
    try:
        kind = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss
    except (ImportError, AttributeError, RuntimeError):  # the last: a Triton without its GPU
        return None
    # Newer ones can sum the head's gradient in float32, whatever its weight is.
    finer = {"accum_dtype": torch.float32} if "accum_dtype" in inspect.signature(kind).parameters else {}
    kernel = kind(ignore_index=IGNORED, reduction="sum", **finer)
    return lambda weight, input, targets, bias: kernel(weight, input, targets, bias)
