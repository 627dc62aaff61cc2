"""Bad input is one line, before anything starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from zhlm.config.load import load_config
from zhlm.config.schema import RunConfig
from zhlm.errors import BaseModelError, ClusterError, ConfigError, CorpusError, RunError, StorageError, UserError
from zhlm.submit.plan import make_plan
from zhlm.submit.preflight import check, check_cluster_file

ROOT = Path(__file__).parents[3]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """A config that passes."""
    base = tmp_path / "base"
    base.mkdir()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 300}
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 2048, **sizes}))
    write_tokenizer(base, {"a": 0, "b": 298}, [{"id": 299, "content": "</s>"}])
    (base / "model.safetensors").write_bytes(b"\0")
    (tmp_path / "zh.txt").write_text("\u4eca\u5929\u5929\u6c14\u597d\n", encoding="utf-8")
    return {
        "name": "tiny",
        "storage": {"root": str(tmp_path / "runs")},
        "base": {"model": str(base)},
        "streams": [{"name": "zh", "role": "new", "paths": [str(tmp_path / "zh.txt")]}],
        "train": {"steps": 1},
    }


def write_tokenizer(base: Path, vocab: Any, added: list[dict[str, Any]]) -> None:
    (base / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))


def config(data: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate_json(json.dumps(data))


def refused(data: dict[str, Any], kind: type[UserError]) -> str:
    with pytest.raises(kind) as caught:
        check(config(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_config_passes_and_leaves_nothing(data: dict[str, Any], tmp_path: Path) -> None:
    check(config(data))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_dataset_folder_that_is_not_there(data: dict[str, Any], tmp_path: Path) -> None:
    data["streams"].append({"name": "en", "role": "old", "dataset": str(tmp_path / "none")})
    assert "the dataset folder" in refused(data, CorpusError)
    data["streams"][1]["dataset"] = "nobody/nothing"  # left to the stages
    check(config(data))


def test_corpus_paths(data: dict[str, Any], tmp_path: Path) -> None:
    data["streams"][0]["paths"] = [str(tmp_path / "none.txt")]
    assert "none.txt does not exist" in refused(data, CorpusError)
    data["streams"][0]["paths"] = [str(tmp_path / "*.jsonl")]
    assert "matches no file" in refused(data, CorpusError)
    data["streams"][0] |= {"paths": [str(tmp_path / "zh.txt")], "held_out": [str(tmp_path / "gone.txt")]}
    assert "gone.txt does not exist" in refused(data, CorpusError)


def test_block_tokens_beyond_the_positions(data: dict[str, Any]) -> None:
    data["pack"] = {"block_tokens": 4096}
    assert refused(data, ConfigError) == "pack: block_tokens 4096 exceeds the model's 2048 positions; lower pack.block_tokens."


def test_base_folder_is_missing_or_a_file(data: dict[str, Any], tmp_path: Path) -> None:
    data["base"]["model"] = str(tmp_path / "nowhere")
    assert "nowhere does not exist" in refused(data, BaseModelError)
    data["base"]["model"] = str(tmp_path / "zh.txt")
    assert "is a file, expected a folder" in refused(data, BaseModelError)


@pytest.mark.parametrize(
    ("name", "says"),
    [("tokenizer.json", "has no tokenizer"), ("config.json", "has no config.json"), ("model.safetensors", "has no weights")],
)
def test_base_folder_lacks_a_file(data: dict[str, Any], tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "base" / name).unlink()
    assert says in refused(data, BaseModelError)


def test_weights_to_be_drawn_need_no_file(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base" / "model.safetensors").unlink()
    data["base"]["from_scratch"], data["train"]["lora"] = True, None
    check(config(data))


def test_vocabulary_larger_than_the_embedding(data: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "base", {"a": 0, "b": 299}, [{"id": 300, "content": "</s>"}])
    assert "has 301 entries but its embedding only 300 rows" in refused(data, BaseModelError)
    write_tokenizer(tmp_path / "base", [["piece", -1.0]] * 301, [])  # Unigram
    assert "has 301 entries" in refused(data, BaseModelError)
    (tmp_path / "base" / "tokenizer.json").write_text("{broken")
    assert "tokenizer.json cannot be read" in refused(data, BaseModelError)


def test_unknown_model_type_is_left_to_the_loader(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "new_kind", "vocab_size": 300}))
    check(config(data))


def test_storage_that_cannot_be_written(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data["storage"]["root"] = str(tmp_path / "file")
    assert "it is a file, not a folder; check storage.root" in refused(data, StorageError)
    data["storage"]["root"] = "/proc/zhlm"  # not even root may create there
    assert refused(data, StorageError).startswith("storage: creating /proc/zhlm failed")


def test_full_disk(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    assert "0.00 GiB free, one checkpoint and logs need 0.06 GiB; free some space" in refused(data, StorageError)


def cluster_file(folder: Path, **changes: Any) -> Path:
    types = {
        "head": {"resources": {"CPU": 0}, "node_config": {}},
        "cpu": {"resources": {"CPU": 16}, "node_config": {}, "max_workers": 4},
        "gpu": {"resources": {"CPU": 8, "GPU": 2}, "node_config": {}, "max_workers": 3},
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"max_workers": 5, "head_node_type": "head", "available_node_types": types, **changes}))
    return path


def test_cluster_that_fits(data: dict[str, Any], tmp_path: Path) -> None:
    data["resources"] = {"workers": 6, "gpus_per_worker": 1.0, "cpus_per_worker": 4.0}
    check_cluster_file(config(data), cluster_file(tmp_path))
    data["resources"] = {"workers": [2, 64], "gpus_per_worker": 2.0}  # uses what is there
    check_cluster_file(config(data), cluster_file(tmp_path))


def cluster_refused(data: dict[str, Any], path: Path) -> str:
    with pytest.raises(ClusterError) as caught:
        check_cluster_file(config(data), path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bundle_that_no_node_holds(data: dict[str, Any], tmp_path: Path) -> None:
    data["resources"] = {"gpus_per_worker": 4.0, "cpus_per_worker": 8.0}
    assert cluster_refused(data, cluster_file(tmp_path)) == (
        "cluster: a training worker needs {8 CPU, 4 GPU}, which no node type of c.yaml holds; the largest is gpu with {8 CPU, 2 GPU}; "
        "lower resources.cpus_per_worker or resources.gpus_per_worker, or give c.yaml a larger type"
    )
    data["resources"] = {}
    data["serve"] = {"gpus_per_replica": 3.0}
    assert "a serving replica needs {1 CPU, 3 GPU}" in cluster_refused(data, cluster_file(tmp_path))


def test_more_workers_than_the_file_allows(data: dict[str, Any], tmp_path: Path) -> None:
    data["resources"] = {"workers": 7, "gpus_per_worker": 1.0}
    message = cluster_refused(data, cluster_file(tmp_path))
    assert "resources.workers asks for 7 x {1 CPU, 1 GPU}, c.yaml has room for 6 (gpu x 3, max_workers 5)" in message
    data["resources"]["workers"] = 5
    assert "has room for 4" in cluster_refused(data, cluster_file(tmp_path, max_workers=2))


def test_files_that_are_no_cluster(data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    assert "cannot be read" in cluster_refused(data, path)
    path.write_text("a: [")
    assert "is not valid YAML" in cluster_refused(data, path)
    path.write_text("cluster_name: x")
    assert "has no available_node_types" in cluster_refused(data, path)


def test_our_cluster_file_holds_every_config() -> None:
    checked = 0
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        run = load_config(path)
        if run.resources.gpus_per_worker or run.storage.root.startswith("s3://"):
            check_cluster_file(run, ROOT / "cluster.yaml")
            checked += 1
    assert checked


@pytest.mark.parametrize(
    ("objective", "model_config", "said"),
    [
        ("masked", {"architectures": ["LlamaForCausalLM"]}, "is LlamaForCausalLM, which takes causal or prefix; objective is masked"),
        ("causal", {"model_type": "bert"}, "is a bert model, which takes masked; objective is causal; set objective: masked"),
        ("causal", {"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "is BertLMHeadModel, which takes masked"),
        ("masked", {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}, "which takes span_corruption"),
    ],
)
def test_an_objective_that_the_base_does_not_take(
    objective: str, model_config: dict[str, Any], said: str, data: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | model_config))
    data["objective"] = objective
    assert said in refused(data, BaseModelError)
    with pytest.raises(BaseModelError, match="which takes"):
        make_plan(config(data))


def test_a_prompt_without_the_mask_of_a_masked_model(data: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "bert"}))
    (tmp_path / "base" / "tokenizer_config.json").write_text('{"mask_token": "[MASK]"}')
    data |= {"objective": "masked", "evaluate": {"prompts": ["\u4eca\u5929"]}}
    assert "is a masked model, which guesses masks" in refused(data, RunError)
    data["evaluate"]["prompts"] = ["\u4eca[MASK]"]
    check(config(data))


def test_the_base_that_the_sample_will_make_takes_what_a_llama_takes(data: dict[str, Any]) -> None:
    data |= {"base": {"model": "sample://base"}, "sample": {"corpus": {}, "base": {"paths": ["sample://en.txt"]}}}
    check(config(data))
    data["objective"] = "span_corruption"
    assert "base: sample://base is a llama model, which takes causal or prefix" in refused(data, BaseModelError)
