"""Serve a run's merged model over HTTP, causal ones as OpenAI does: `zhlm serve RUN`, `python -m ray_jobs.serve --config FILE`."""

import importlib
import json
import signal
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from zhlm.cluster import connect
from zhlm.config.load import load_config
from zhlm.config.schema import RunConfig
from zhlm.display import Display, quiet
from zhlm.errors import DeadlineError, RunError, ServeError
from zhlm.records import Progress, Report
from zhlm.serve.protocol import Endpoint
from zhlm.serve.settings import (
    check_port,
    check_servable,
    client_url,
    curl_example,
    endpoint_of,
    example_text,
    llm_settings,
    max_model_tokens,
    model_folder,
    read_model,
)
from zhlm.storage import Place, Run
from zhlm.tokenizer.load import load_tokenizer

POLL_S = 0.25
SHUTDOWN_S = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(config: RunConfig, report: Report | None = None) -> dict[str, Any]:
    """Serve the run of a config until Ctrl-C or SIGTERM.

    Raises: RunError when it has no merged model, ServeError when the server cannot start, DeadlineError when it is not ready in time.
    """
    _serve_folder(config, Run.of(config).folder, report)
    return {"model_id": config.serve.model_id or config.name}


def serve_run(run_folder: str, port: int | None = None) -> None:
    """Serve a finished run until Ctrl-C or SIGTERM; `port` replaces the config's.

    Raises: RunError when the folder is no run or has no merged model; else as `run`.
    """
    folder = Place(run_folder)
    if not (folder / "config.yaml").exists():
        raise RunError(f"serve: {folder} has no config.yaml, so it is no run; name a run's folder such as runs/sample")
    config = load_config((folder / "config.yaml").on_disk())
    if port is not None:
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"port": port})})
    _serve_folder(config, folder)


def _serve_folder(config: RunConfig, folder: Place, report: Report | None = None) -> None:
    """Check everything that needs no Ray, then start, say where, and block."""
    started_s = time.monotonic()
    model_path = model_folder((folder / "export").on_disk()).absolute()
    model = read_model(model_path)
    check_port(config.serve.host, config.serve.port)
    max_model_tokens(config.serve, model)  # refuses what the model cannot take
    endpoint = endpoint_of(config, model)
    text = example_text(config, endpoint, None if endpoint == "completions" else load_tokenizer(str(model_path)))
    url, model_id = client_url(config.serve), config.serve.model_id or config.name
    owners = "Ray's and vLLM's" if endpoint == "completions" else "Ray's"
    log_path = (folder.path if not folder.remote else Path.home() / "zhlm" / folder.name) / "logs" / "serve.log"
    with _stoppable(), quiet(log_path) as terminal, Display(terminal) as display:
        try:
            display.line(f"serving {model_path}; {owners} own messages: {log_path}")
            with _application(config, _builder(config, model_path, endpoint, model)):
                _wait_ready(config, url, report or display.report)
                display.line(f"ready in {time.monotonic() - started_s:.0f} s: {url} (model {model_id}); Ctrl-C stops it", "green")
                display.line(f"try it: {curl_example(url, endpoint, model_id, text)}")
                threading.Event().wait()
        except KeyboardInterrupt:
            display.line("stopped")
        except Exception:
            traceback.print_exc()  # into the log; the caller prints one line
            raise


def _builder(config: RunConfig, folder: Path, endpoint: Endpoint, model: dict[str, Any]) -> Callable[[], Any]:
    """What makes the Serve application once Ray is connected. Raises: ServeError as _load_serving."""
    if endpoint != "completions":
        application = importlib.import_module("zhlm.serve.replica").application
        return lambda: application(config, folder, endpoint, model)
    llm, settings = _load_serving(config, model), llm_settings(config, folder, model)
    # The ingress only passes requests on: one, and no CPU held, so that a one-core machine can serve.
    ingress = {"num_replicas": 1, "autoscaling_config": None, "ray_actor_options": {"num_cpus": 0}}
    return lambda: llm.build_openai_app({"llm_configs": [llm.LLMConfig(**settings)], "ingress_deployment_config": ingress})


def _load_serving(config: RunConfig, model: dict[str, Any]) -> Any:
    """Import the serving packages: the module `ray.serve.llm`. Raises: ServeError when they are missing or refuse the model."""
    try:
        llm = importlib.import_module("ray.serve.llm")
        registry = importlib.import_module("vllm").ModelRegistry
        attention = importlib.import_module("vllm.v1.attention.backends.cpu_attn").CPUAttentionBackend
    except ImportError as error:
        raise ServeError(
            f"serve: the serving packages cannot be imported ({str(error).splitlines()[0]}); run scripts/install, or install vllm on a GPU "
            "machine and requirements-serve-cpu.txt (with --no-deps) on another"
        ) from error
    widths = None if config.serve.gpus_per_replica else attention.get_supported_head_sizes()
    check_servable(model, set(registry.get_supported_archs()), widths)
    return llm


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C both interrupt, whatever Ray has made of them."""
    before = [signal.getsignal(s) for s in SIGNALS]
    _handle(signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _handle(handler: Callable[..., Any] | signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


@contextmanager
def _application(config: RunConfig, build: Callable[[], Any]) -> Iterator[None]:
    """The Serve application, being started; gone, with its processes, when the block ends."""
    connect()
    _handle(signal.default_int_handler)  # Ray has put its own in place
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": config.serve.host, "port": config.serve.port})
        serve.run_many(
            [serve.RunTarget(build(), name=config.name, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        yield
    finally:
        _handle(signal.SIG_IGN)  # a second Ctrl-C would leave vLLM's processes behind
        # In a thread, because a Ray that has died must not keep this process from ending.
        closing = threading.Thread(target=serve.shutdown, daemon=True)
        closing.start()
        closing.join(SHUTDOWN_S)
        ray.shutdown()


def _wait_ready(config: RunConfig, url: str, report: Report) -> None:
    """Return once the replicas run and the list of models is answered over HTTP.

    Raises: ServeError when the deployment failed, DeadlineError when it took too long.
    """
    start_s, limit_s = time.monotonic(), config.serve.start_timeout_s
    while True:
        application = serve.status().applications.get(config.name)
        parts = {name: d.status.value for name, d in application.deployments.items()} if application else {}
        status = application.status.value if application else "NOT_STARTED"
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            assert application is not None, "an application without a status is NOT_STARTED"
            raise ServeError(
                f"serve: the model could not be started: {_last_line(application.message)}; the log of this command tells more"
            )
        if status == "RUNNING" and _answers(url):
            return
        starting = sorted(name for name, state in parts.items() if state != "HEALTHY")
        if time.monotonic() - start_s > limit_s:
            waited_for = ", ".join(starting) or ("an answer to /v1/models" if parts else "Ray Serve's controller")
            raise DeadlineError(
                f"serve: not ready after {limit_s} s, waited for {waited_for}; look into the log, give the cluster more room, "
                "or raise serve.start_timeout_s"
            )
        # `done` stays 0: two parts of very different length would make nonsense of a time left.
        report(Progress("serve", 0, 1, "servers", {"starting": ", ".join(starting) or "Ray Serve"}))
        time.sleep(POLL_S)


def _last_line(message: str) -> str:
    return (message.strip() or "no reason given").splitlines()[-1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
            return bool(json.load(answer)["data"])
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError):
        return False
