"""Masked and sequence-to-sequence models over HTTP: `zhlm serve` for a BERT, and a T5 that joins the same Ray and the same Serve."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from ray import serve
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from conftest import run_data
from tiny_bases import bert_folder, t5_folder
from zhlm.config.schema import RunConfig
from zhlm.inference.fill_mask import guess_masked, read_masked
from zhlm.serve.replica import application
from zhlm.serve.settings import read_model

READY_S = 150
WAIT_S = 2.0
BATCH = 8


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _bert_run(folder: Path) -> Path:
    """A finished run's folder, as far as serving reads it."""
    run = folder / "runs" / "tiny"
    bert_folder(run / "export" / "merged")
    settings = {"max_batch_size": BATCH, "batch_wait_timeout_s": WAIT_S}
    more = {"objective": "masked", "serve": settings, "evaluate": {"prompts": ["今天[MASK]气很好"]}}
    (run / "config.yaml").write_text(yaml.safe_dump(run_data(folder) | more), encoding="utf-8")
    return run


def _join_t5(folder: Path) -> None:
    """A T5 that writes until it is stopped, beside the BERT, under /t5."""
    t5_folder(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    with torch.no_grad():
        model.shared.weight[1] = 0  # eos is never the likeliest
    model.save_pretrained(folder)
    settings = {"max_model_tokens": 100_000, "request_timeout_s": 2.0}
    config = RunConfig.model_validate_json(json.dumps(run_data(folder) | {"objective": "span_corruption", "serve": settings}))
    serve.run(application(config, folder, "text-to-text", read_model(folder)), name="t5", route_prefix="/t5")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, ray_local: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The folders, the process, its console and a client for its port."""
    folder, port = tmp_path_factory.mktemp("served"), _free_port()
    run = _bert_run(folder)
    output = run / "console.txt"
    command = [str(Path(sys.executable).with_name("zhlm")), "serve", str(run), "--port", str(port)]
    with open(output, "w", encoding="utf-8") as console:
        process = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, env=os.environ | ray_local)
    try:
        deadline_s = time.monotonic() + READY_S
        while "try it" not in output.read_text(encoding="utf-8"):
            assert process.poll() is None, output.read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s, f"not ready: {output.read_text(encoding='utf-8')}"
            time.sleep(0.1)
        _join_t5(folder / "t5")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield {
                "bert": run / "export" / "merged",
                "t5": folder / "t5",
                "port": port,
                "client": client,
                "process": process,
                "console": output,
            }
    finally:
        process.terminate()
        process.wait(60)
        serve.shutdown()  # this process's part of it


def _post(served: dict[str, Any], path: str, **body: Any) -> tuple[int, Any, float]:
    started_s = time.monotonic()
    answer = served["client"].post(path, json=body)
    return answer.status_code, answer.json(), time.monotonic() - started_s


@pytest.mark.timeout(240)
def test_the_console_shows_a_request_that_works(served: dict[str, Any]) -> None:
    lines = served["console"].read_text(encoding="utf-8").splitlines()
    assert any(f"http://127.0.0.1:{served['port']}/v1 (model tiny)" in line for line in lines)
    words = shlex.split(next(line for line in lines if line.startswith("try it: curl ")).removeprefix("try it: "))
    assert words[1] == f"http://127.0.0.1:{served['port']}/v1/fill-mask"
    status, answer, _ = _post(served, words[1], **json.loads(words[-1]))
    assert (status, answer["model"], len(answer["results"][0]["masks"][0])) == (200, "tiny", 5)
    assert served["client"].get("/health").json() == {"status": "ok"}
    assert [m["id"] for m in served["client"].get("/v1/models").json()["data"]] == ["tiny"]


@pytest.mark.timeout(60)
def test_what_is_served_is_what_was_exported_and_a_full_batch_does_not_wait(served: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(served["bert"])
    model = AutoModelForMaskedLM.from_pretrained(served["bert"])
    texts = [f"今天[MASK]气{'很' * n}好，我[MASK]看书" for n in range(BATCH)]
    expected = guess_masked(model.eval(), tokenizer, [read_masked(tokenizer, t) for t in texts], 3)
    status, answer, whole_s = _post(served, "/v1/fill-mask", input=texts, top_k=3)
    assert status == 200
    for result, masks in zip(answer["results"], expected, strict=True):
        assert [[g["token"] for g in guesses] for guesses in result["masks"]] == [[g.token for g in guesses] for guesses in masks]
        assert [g["score"] for g in result["masks"][1]] == pytest.approx([g.score for g in masks[1]], abs=1e-5)
    _, _, alone_s = _post(served, "/v1/fill-mask", input=texts[0])
    assert whole_s < WAIT_S <= alone_s, "eight texts are a batch at once, one waits for others"


@pytest.mark.timeout(60)
def test_mistakes_are_one_line(served: dict[str, Any]) -> None:
    assert _post(served, "/v1/fill-mask", input="今天")[:2] == (
        400,
        {"detail": "input has no mask token; write [MASK] in the place of what is to be guessed"},
    )
    assert _post(served, "/v1/fill-mask", input="天" * 200)[1]["detail"] == "input has 202 tokens, the limit is 128; shorten it"
    assert _post(served, "/v1/fill-mask", text="今天")[0] == 422
    assert _post(served, "/v1/completions", prompt="今天")[0] == 404


@pytest.mark.timeout(60)
def test_texts_are_written_and_a_deadline_frees_the_model(served: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(served["t5"])
    model = AutoModelForSeq2SeqLM.from_pretrained(served["t5"])
    text = "今天天气<extra_id_0>好"
    row = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6, do_sample=False)[0]
    status, answer, _ = _post(served, "/t5/v1/text-to-text", input=[text, "the teacher"], max_new_tokens=6)
    assert (status, answer["results"][0]["texts"]) == (200, [tokenizer.decode(row[1:])])
    sampled = {"temperature": 0.9, "top_p": 0.9, "num_return_sequences": 3, "max_new_tokens": 6}
    assert len(_post(served, "/t5/v1/text-to-text", input=text, **sampled)[1]["results"][0]["texts"]) == 3
    status, answer, waited_s = _post(served, "/t5/v1/text-to-text", input=text, max_new_tokens=100_000)
    assert (status, answer["detail"]) == (504, "no answer within 2 s; ask for less, or raise serve.request_timeout_s")
    assert waited_s < 10
    assert _post(served, "/t5/v1/text-to-text", input=text, max_new_tokens=1)[0] == 200, "the model still writes what nobody waits for"


@pytest.mark.timeout(60)
def test_sigterm_ends_it_and_frees_the_port(served: dict[str, Any]) -> None:
    """Last of the tests on this server."""
    served["client"].close()
    served["process"].send_signal(signal.SIGTERM)
    assert served["process"].wait(40) == 0
    assert served["console"].read_text(encoding="utf-8").splitlines()[-1] == "stopped"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", served["port"]))
