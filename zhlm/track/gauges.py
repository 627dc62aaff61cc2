"""The newest numbers of a training as gauges of Ray's metrics, which Prometheus collects from each node."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

GAUGES = {
    "step": "Optimizer steps done",
    "loss_nats": "Mean loss per target of the last logged step",
    "tokens_per_s": "Tokens trained on per second, over all workers",
    "grad_norm": "Norm of the gradients before clipping",
    "data_wait_share": "Share of the time in which training waited for blocks",
    "workers": "Training workers",
    "bits_per_byte": "On the held-out blocks, by stream",
}


class Prometheus:
    """Gauges that Ray's nodes export, as `ray_zhlm_train_loss_nats{run="..."}`; they hold the newest value."""

    name = "prometheus"

    def __init__(self, run: str) -> None:
        self._gauges = {
            value: Gauge(f"zhlm_train_{value}", description, ("run", "stream") if value == "bits_per_byte" else ("run",))
            for value, description in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def last(self, value: str) -> int:
        return -1

    def log(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        for name, number in {"step": float(step), **values}.items():
            value, _, stream = name.partition("/")
            if value in self._gauges:
                self._gauges[value].set(number, {"stream": stream} if stream else {})

    def close(self, *, finished: bool) -> None:
        pass
