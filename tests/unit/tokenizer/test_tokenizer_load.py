"""Loading a tokenizer, and each way in which that can fail for a reason of the user's."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from zhlm.errors import BaseModelError
from zhlm.tokenizer.load import digest_of, load_tokenizer, use_cache_only, vocabulary_of


def save_tokenizer(folder: Path, *words: str) -> Path:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<eos>", *words])}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def test_a_folder_loads_with_its_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_tokenizer(tmp_path, "你好", "世界")))
    assert tokenizer.eos_token_id == 0
    assert tokenizer("你好 世界", add_special_tokens=False).input_ids == [1, 2]
    assert vocabulary_of(tokenizer) == 3


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    one = load_tokenizer(str(save_tokenizer(tmp_path / "a", "你好")))
    same = load_tokenizer(str(save_tokenizer(tmp_path / "b", "你好")))
    other = load_tokenizer(str(save_tokenizer(tmp_path / "c", "您好")))
    assert digest_of(one) == digest_of(same) != digest_of(other)


def test_a_vocabulary_with_holes_counts_to_its_largest_id(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "你好")
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["vocab"]["远"] = 99
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert vocabulary_of(load_tokenizer(str(tmp_path))) == 100


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{}/missing", "does not exist; correct base.model"),
        ("{}/empty", "has none of tokenizer.json"),
        ("{}/torn", "cannot be loaded"),
        ("two words", "neither a folder nor a hub name"),
        ("nobody/nothing", "the hub does not answer and the local cache lacks it"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(BaseModelError) as caught:
        load_tokenizer(source.format(tmp_path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """A hub that knows one model."""

    def do_GET(self) -> None:
        known = self.path.startswith("/api/models/known/model")
        body = json.dumps({"id": "known/model"}).encode() if known else b"{}"
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.mark.usefixtures("hub")
def test_the_hub_is_asked_once_whether_it_has_the_model() -> None:
    assert use_cache_only("known/model") is False
    with pytest.raises(BaseModelError, match="does not exist on the hub") as caught:
        use_cache_only("known-not/model", "v2")
    assert "known-not/model at revision v2" in str(caught.value)
    assert "\n" not in str(caught.value)
