"""How a finished run is served."""

from typing import Annotated

from pydantic import Field

from zhlm.config.section import Positive, Section


class ServeConfig(Section):
    """The three settings of batching and deadlines are for masked, span corruption and prefix models; vLLM batches by itself."""

    model_id: str | None = None
    """Name clients ask for. None: the run's name."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(gt=0, lt=65536)] = 8000
    replicas: Positive = 1
    cpus_per_replica: Positive = 1
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0.0
    kv_cache_gib: Positive = 1
    """Memory of vLLM's key-value cache, on CPU."""
    max_model_tokens: Positive | None = None
    """Longest prompt plus answer; with an encoder, the longest of each. None: the model's positions, or pack.block_tokens where they have
    no limit (T5)."""
    max_batch_size: Positive = 16
    """Texts that go through the model together."""
    batch_wait_timeout_s: Annotated[float, Field(ge=0)] = 0.01
    """How long the first text of a batch waits for others."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A request without an answer by then ends with HTTP 504, and what is still to compute for it is left out."""
    start_timeout_s: Positive = 300
