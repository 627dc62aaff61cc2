"""YAML and overrides become a RunConfig, or one line that names the place and the remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zhlm.config.load import dump_config, load_config
from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError

SMALLEST = """\
name: tiny
base: {model: some/model}
streams:
  - {name: zh, paths: [zh.txt], role: new, weight: 3}
  - {name: en, paths: [en.txt], role: old}
train:
  steps: 4
"""
CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text and text.startswith("config: "), text
    return text


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4), ("1e-3", 1e-3), ("5E5", 5e5), ("5e+5", 5e5), (".5", 0.5), ("1.", 1.0), ("1.5e-2", 0.015), ("2E-1", 0.2),
        ("1_000", 1000), ("3", 3), ("1_0.5", 10.5),
    ],
)  # fmt: skip
def test_numbers_are_numbers(file: Path, written: str, value: float) -> None:
    file.write_text(SMALLEST + f"  learning_rate: {written}\n", encoding="utf-8")
    assert load_config(file).train.learning_rate == value
    assert load_config(file, [f"train.learning_rate={written}"]).train.learning_rate == value


@pytest.mark.parametrize("name", ["e5", "1e", "v1e-4", "1e-4b", "2026-11-20"])
def test_words_that_look_like_numbers_or_dates_stay_words(file: Path, name: str) -> None:
    assert load_config(file, [f"name={name}"]).name == name


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trian.steps=4", "unknown key trian; did you mean train?"),
        ("train.stepz=4", "unknown key train.stepz; did you mean steps?"),
        ("streams.0.rol=new", "unknown key streams.0.rol; did you mean role?"),
        ("train.lora.dropuot=0.1", "unknown key train.lora.dropuot; did you mean dropout?"),
        ("pack.clean.min_cars=0", "unknown key pack.clean.min_cars; did you mean min_chars?"),
        ("sample.corpus.qqq=0", "unknown key sample.corpus.qqq; known here: documents, held_out_documents, seed"),
        ("train.steps='4'", "train.steps is '4'; input should be a valid integer"),
        ("train.steps=true", "train.steps is True; input should be a valid integer"),
        ("train.steps=4.0", "train.steps is 4.0; input should be a valid integer"),
        ("train.steps=0", "train.steps is 0; input should be greater than 0"),
        ("train.gradient_checkpointing=1", "train.gradient_checkpointing is 1; input should be a valid boolean"),
        ("train.learning_rate='1e-4'", "train.learning_rate is '1e-4'; input should be a valid number"),
        ("train.learning_rate=.inf", "train.learning_rate is inf; input should be a finite number"),
        ("train.learning_rate=.nan", "train.learning_rate is nan; input should be a finite number"),
        ("train.zero_stage=4", "train.zero_stage is 4; input should be 0, 1, 2 or 3"),
        ("train.betas=[0.9]", "train.betas.1 is missing; add it"),
        ("base.model=3", "base.model is 3; input should be a valid string"),
        ("base=", "base is None; input should be an object"),
        ("name=a/b", "name is 'a/b'; string should match pattern"),
        ("streams=[]", "streams is []; list should have at least 1 item"),
        ("train.lora.targets=7", "train.lora.targets is 7; input should be a valid string or Input should be a valid array"),
        ("train.lora.targets=q_(", "'q_(' is no regular expression (missing ), unterminated subpattern at position 2); correct it"),
        ("train.lora.targets=[]", "train.lora.targets is []; "),
        ("train.rate_factors={'*': 2}", "'*' is no regular expression"),
        ("train.rate_factors={'.*': 0}", "input should be greater than 0"),
        ("train.lora.plus_ratio=0", "train.lora.plus_ratio is 0; input should be greater than 0"),
        ("train.freeze={first_layers: 1}", "train: freeze is set beside lora, which freezes the whole base; set lora: null, or choose"),
        ("train={steps: 4, lora: null, freeze: {}}", "train.freeze: nothing is named; set first_layers, last_layers, embeddings or"),
        ("train={steps: 4, schedule: wsd, decay_share: 0.99}", "warmup_share 0.05 and decay_share 0.99 exceed 1 together; lower one"),
        ("train.lora.targets=[1, 2]", "train.lora.targets.0 is 1; input should be a valid string"),
        ("train.epochs=1", "train: steps is 4 and epochs is 1.0; set exactly one of the two"),
        ("train.steps=null", "train: steps is None and epochs is None; set exactly one of the two"),
        ("train.micro_batch_blocks=99", "train: micro_batch_blocks 99 exceeds global_batch_blocks 16; lower the first"),
        ("train={steps: 4, offload: optimizer, zero_stage: 0}", "offload: optimizer needs zero_stage 1, 2 or 3, and zero_stage is 0"),
        ("train.precision=float16", "train.precision: float16 overflows, and DeepSpeed then leaves steps out without a word"),
        ("train.precision=fp16", "set bfloat16, or float32 where the hardware lacks it"),
        ("train.precision=int8", "train.precision is 'int8'; input should be 'float32' or 'bfloat16'"),
        ("train.trackers=[tensorboard]", "train.trackers.0 is 'tensorboard'; input should be 'wandb' or 'mlflow'"),
        ("train={steps: 4, compile: true, zero_stage: 3}", "compile is true, zero_stage 3 and gradient_checkpointing False; it works with"),
        ("train.early_stop={patience: 0}", "train.early_stop.patience is 0; input should be greater than 0"),
        ("train={steps: 4, offload: all, zero_stage: 2}", "offload: all needs zero_stage 3, and zero_stage is 2; set zero_stage: 3"),
        ("base.from_scratch=true", "base.from_scratch draws random weights, and train.lora would leave them so; set train.lora: null"),
        ("streams.1.name=zh", "streams: the name 'zh' is used twice; give each stream its own name"),
        ("streams.0.role=old", "streams: none has role `new`; mark the language to learn with role: new"),
        ("base.model=sample://base", "base.model is sample://base but sample.base is null; add a sample.base section"),
        ("streams.0.paths=[sample://zh]", "the path sample://zh needs the sample corpus but sample.corpus is null"),
        ("streams.0.held_out=[sample://zh]", "the path sample://zh needs the sample corpus but sample.corpus is null"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_path_and_the_remedy(file: Path, override: str, said: str) -> None:
    assert said in message(file, override)


def test_new_rows_that_nothing_would_train_are_refused(file: Path) -> None:
    said = message(file, "vocab={}", "train.embeddings=none")
    assert "vocab adds rows but train.embeddings is none" in said and "set train.embeddings: all or new_rows, or vocab: null" in said
    assert load_config(file, ["vocab={}", "train.embeddings=none", "train.lora=null"]).vocab is not None
    assert load_config(file, ["vocab={}", "train.embeddings=new_rows"]).train.embeddings == "new_rows"
    assert "set one of them to null" in message(file, "vocab={}", "train.lora=null", "train.freeze={embeddings: true}")
    assert "new_rows but vocab is null, so there are none" in message(file, "train.embeddings=new_rows")
    assert "new_rows but lora is null, so all rows would be" in message(file, "vocab={}", "train.embeddings=new_rows", "train.lora=null")


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("[4, 1]", "workers [4, 1] must be [least, most] with 0 < least <= most; swap or raise them"),
        ("[0, 1]", "workers [0, 1] must be [least, most]"),
        ("0", "resources.workers is 0; input should be greater than 0"),
        ("[1]", "resources.workers.1 is missing"),
        ("[1, 2, 3]", "resources.workers is [1, 2, 3]; input should be a valid integer or Tuple should have at most 2 items"),
        ("[1, two]", "resources.workers.1 is 'two'; input should be a valid integer"),
        ("many", "resources.workers is 'many'; input should be a valid integer or Input should be a valid array"),
    ],
)
def test_wrong_workers_are_explained(file: Path, workers: str, said: str) -> None:
    assert said in message(file, f"resources.workers={workers}")


def test_workers_are_a_number_or_a_range(file: Path) -> None:
    fixed = load_config(file, ["resources.workers=3"]).resources
    assert (fixed.min_workers, fixed.max_workers) == (3, 3)
    elastic = load_config(file, ["resources.workers=[1, 4]"]).resources
    assert (elastic.min_workers, elastic.max_workers) == (1, 4)


def test_several_problems_are_counted(file: Path) -> None:
    said = message(file, "pack.block_tokns=3", "train.stepz=4")
    assert "unknown key pack.block_tokns; did you mean block_tokens?" in said and said.endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds NoneType, expected sections such as name"),
        ("- a\n- b\n", "holds list, expected sections"),
        ("name: a\nname: b\n", "line 2 is not valid YAML: the key 'name' is given twice; correct that line"),
        ("train:\n  steps: 1\n  steps: 2\n", "line 3 is not valid YAML: the key 'steps' is given twice"),
        ("name: [a\n", "line 2 is not valid YAML"),
        ("name: a\n\tb: c\n", "line 2 is not valid YAML"),
        ("name: a\x07\n", "is not valid YAML: unacceptable character"),
        ("? [a, b]\n: 1\n", "line 1 is not valid YAML: ['a', 'b'] cannot be a key"),
        ("name: !!python/name:os.system\n", "line 1 is not valid YAML"),
        ("name: !!binary aGVsbG8=\n", "b'hello' is bytes, expected text"),
        ("name: a\n", "base is missing; add it (and 2 more)"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(file: Path, text: str, said: str) -> None:
    file.write_text(text, encoding="utf-8")
    assert said in message(file)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "gone.yaml does not exist; name a file such as configs/sample.yaml" in message(tmp_path / "gone.yaml")
    assert "is a folder; name one YAML file in it" in message(tmp_path)
    (tmp_path / "gbk.yaml").write_bytes("name: 中文".encode("gbk"))
    assert "has a byte at offset 6 that is not UTF-8" in message(tmp_path / "gbk.yaml")


def test_overrides_reach_every_depth_and_later_ones_win(file: Path) -> None:
    config = load_config(
        file,
        [
            "train.steps=7", "train.steps=9", "streams.1.weight=0.5", "streams.0.paths=[a.txt, 'b c.txt']", "pack.clean.min_chars=5",
            "train.betas=[0.8, 0.9]", "train.max_grad_norm=null", "evaluate.prompts=['中=文', b]", "base={model: other}",
            "sample.base.paths=[a.txt]", "sample.base.width=64",
        ],
    )  # fmt: skip
    assert config.train.steps == 9 and config.train.betas == (0.8, 0.9) and config.train.max_grad_norm is None
    assert config.streams[0].paths == ["a.txt", "b c.txt"] and config.streams[1].weight == 0.5
    assert config.pack.clean.min_chars == 5 and config.evaluate.prompts == ["中=文", "b"] and config.base.model == "other"
    assert config.sample is not None and config.sample.base is not None and config.sample.base.width == 64


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "--set 'train.steps' has no value; write --set train.steps=100"),
        ("=3", "--set '=3' has no value"),
        ("train.steps.x=3", "--set train.steps.x: train.steps is 4, which has no fields; set train.steps itself"),
        ("streams.2.name=x", "--set streams.2.name: '2' is not an entry of a list of 2; count from 0"),
        ("streams.-1.name=x", "'-1' is not an entry of a list of 2"),
        ("streams.zh.name=x", "'zh' is not an entry of a list of 2"),
        ("streams.0.paths.1=x", "'1' is not an entry of a list of 1"),
        ("train.steps=[", "--set 'train.steps=[' line 1 is not valid YAML"),
        ("train={steps: 1, steps: 2}", "the key 'steps' is given twice"),
    ],
)
def test_an_override_that_leads_nowhere_is_one_line(file: Path, override: str, said: str) -> None:
    assert said in message(file, override)


def test_dumped_configs_read_back_equal(file: Path, tmp_path: Path) -> None:
    changed = [
        "resources.workers=[1, 4]", "train.learning_rate=1e-7", "vocab={}", "evaluate.prompts=['中文：yes', 'on', '1e-4', '3']",
        "sample.base.paths=[a]", "name=1e5.2",
    ]  # fmt: skip
    for overrides in ([], changed):
        config = load_config(file, overrides)
        (tmp_path / "dumped.yaml").write_text(dump_config(config), encoding="utf-8")
        assert load_config(tmp_path / "dumped.yaml") == config


@given(rate=st.floats(1e-300, 1e300), prompts=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]))))
def test_any_number_and_any_text_reads_back_equal(tmp_path_factory: Any, rate: float, prompts: list[str]) -> None:
    data = yaml.safe_load(SMALLEST) | {"evaluate": {"prompts": prompts}}
    data["train"]["learning_rate"] = rate
    config = RunConfig.model_validate(data)
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_a_config_cannot_be_changed(file: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(file).train.steps = 5


def test_there_are_configs() -> None:
    assert list(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_of_the_project_loads(path: Path) -> None:
    assert load_config(path).streams
