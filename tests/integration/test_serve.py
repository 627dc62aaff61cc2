"""`zhlm serve` as a person uses it: a real process, a real HTTP port, the official client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import run_data

READY_S = 200
PROMPTS = ["The weather in ", "今天", "A"]
NEW_TOKENS = 24

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the client's idle connections to a server that ends


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _save_model(folder: Path) -> None:
    """A random Llama that writes whole characters, and a byte-level tokenizer that starts a text with bos.

    Whole characters, because decoders differ in what they make of half a character at the end of a text. Its heads are 32 wide, the
    least that vLLM's attention on CPU takes.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<bos>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(["今天天气很好，我们去公园看花。The weather in the park is fine today."] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    broken = [i for i in range(len(tokenizer)) if i < 2 or "\ufffd" in tokenizer.decode([i])]
    with torch.no_grad():
        model.lm_head.weight[broken] = 0.0
    model.save_pretrained(folder)


def _make_run(folder: Path, **serve: Any) -> Path:
    """A finished run's folder, as far as serving reads it."""
    run = folder / "runs" / "tiny"
    _save_model(run / "export" / "merged")
    (run / "config.yaml").write_text(yaml.safe_dump(run_data(folder) | {"serve": serve}), encoding="utf-8")
    return run


def _command(run: Path, *options: str) -> list[str]:
    return [str(Path(sys.executable).with_name("zhlm")), "serve", str(run), *options]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A served tiny run: its folder, client, port and process."""
    run, port = _make_run(tmp_path_factory.mktemp("served")), _free_port()
    output = run / "console.txt"
    with open(output, "w", encoding="utf-8") as console:
        process = subprocess.Popen(_command(run, "--port", str(port)), stdout=console, stderr=subprocess.STDOUT, env={**os.environ})
    try:
        deadline_s = time.monotonic() + READY_S
        while "ready in" not in output.read_text(encoding="utf-8"):
            assert process.poll() is None, output.read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s, f"not ready: {output.read_text(encoding='utf-8')}"
            time.sleep(0.2)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
        yield {"run": run, "port": port, "client": client, "process": process, "console": output}
        client.close()
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.timeout(300)
def test_the_run_is_listed_under_its_name(served: dict[str, Any]) -> None:
    assert [m.id for m in served["client"].models.list().data] == ["tiny"]


@pytest.mark.timeout(300)
def test_greedy_text_equals_generate(served: dict[str, Any]) -> None:
    """Complete and streamed, for every prompt: what is served is what was exported."""
    folder = served["run"] / "export" / "merged"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            row = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0]
        assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id
        expected = tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        whole = served["client"].completions.create(**asked)
        assert whole.choices[0].text == expected
        assert whole.usage.prompt_tokens == inputs["input_ids"].shape[1]
        with served["client"].completions.create(**asked, stream=True) as stream:
            parts = [c.choices[0].text for c in stream if c.choices]
        assert "".join(parts) == expected
        assert len(parts) > 3, "the answer was not streamed"


@pytest.mark.timeout(300)
def test_the_console_says_where_and_hides_the_noise(served: dict[str, Any]) -> None:
    lines = served["console"].read_text(encoding="utf-8").splitlines()
    assert any(f"http://127.0.0.1:{served['port']}/v1 (model tiny)" in line for line in lines)
    assert any(line.startswith("try it: curl ") for line in lines)
    assert not [line for line in lines if "INFO" in line or "WARNING" in line or "vllm" in line.lower().replace("ray's and vllm's own", "")]
    assert "Started vLLM engine" in (served["run"] / "logs" / "serve.log").read_text(encoding="utf-8")


@pytest.mark.timeout(300)
def test_sigterm_ends_it_and_frees_the_port(served: dict[str, Any]) -> None:
    """Last of the tests on this server."""
    served["client"].close()
    served["process"].send_signal(signal.SIGTERM)
    assert served["process"].wait(60) == 0
    assert served["console"].read_text(encoding="utf-8").splitlines()[-1] == "stopped"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", served["port"]))


def _refused(run: Path, *options: str) -> str:
    """The one line of a command that must end at once, with exit code 2."""
    done = subprocess.run(_command(run, *options), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (run / "logs").exists(), "it looked further than it had to"
    return done.stderr


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    run = _make_run(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"zhlm: serve: 127.0.0.1:{port} cannot be used" in _refused(run, "--port", str(port))


def test_a_run_without_export_is_one_line(tmp_path: Path) -> None:
    run = _make_run(tmp_path)
    (run / "export" / "merged" / "config.json").unlink()
    assert "holds no model; run `python -m ray_jobs.export`" in _refused(run)


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    assert "config.yaml" in _refused(tmp_path)


def test_a_model_that_vllm_cannot_take_is_one_line(tmp_path: Path) -> None:
    run = _make_run(tmp_path)
    path = run / "export" / "merged" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"head_dim": 16}), encoding="utf-8")
    done = subprocess.run(_command(run, "--port", str(_free_port())), capture_output=True, text=True, timeout=60)
    assert (done.returncode, "heads are 16 wide" in done.stderr) == (2, True), done
