"""`zhlm vocab` on a local Ray: a base and a corpus in, a folder out that plain transformers reads, and nothing where it must not be."""

import json
import re
from pathlib import Path

import pytest
import torch
from test_vocab_job import ENGLISH, GPT2, LLAMA, config_at, save_base
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from zhlm.cli import main
from zhlm.storage import Run
from zhlm.vocab import job

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_base(tmp_path / "base", LLAMA)
    config_at(tmp_path)  # the corpus
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    """One line, exit code 2, nothing written."""
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    capfd.readouterr()
    assert main(["vocab", *arguments]) == 2
    err = capfd.readouterr().err
    # Progress bars of transformers are seen here only: pytest's own sys.stderr does not go where the command sends the rest.
    lines = [line for line in err.splitlines() if line and "it/s]" not in line]
    assert len(lines) == 1 and lines[0].startswith("zhlm: ") and says in lines[0], err
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_the_folder_is_that_of_the_stage(case: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ["--rows", "40", "--set", "vocab.pad_to_multiple=8", "--compare-init"]
    assert main(["vocab", "base", "--corpus", "zh.txt", "--old", "en.txt", "--out", "out", *settings]) == 0
    out, err = capfd.readouterr()
    assert "zhlm:" not in err and "40 of 40 reachable" in out and "bits per byte at step 0" in out and "step time" in out
    assert re.search(r"\n {22}on [0-9,]+ texts, [0-9,]+ characters\n", out)
    config = config_at(case, add_rows=40, pad_to_multiple=8, compare_init=True)
    job.run(config, lambda progress: None)
    stage = Run.of(config).vocab.path
    assert {path.name for path in stage.iterdir()} == {path.name for path in (case / "out").iterdir()}
    for name in ("tokenizer.json", "verify.json", "init.json", "model.safetensors"):
        assert (stage / name).read_bytes() == (case / "out" / name).read_bytes(), name
    assert main(["vocab", "--verify", "out", "--base", "base", "--corpus", "zh.txt", "en.txt"]) == 0


def test_a_word_list_alone_and_with_pieces(case: Path) -> None:
    (case / "words.txt").write_text("公园里\n老师在\n", encoding="utf-8")
    assert main(["vocab", "base", "--corpus", "zh.txt", "--out", "out", "--rows", "0", "--word-list", "words.txt"]) == 0
    before, after = AutoTokenizer.from_pretrained("base"), AutoTokenizer.from_pretrained("out")
    model, old = AutoModelForCausalLM.from_pretrained("out"), AutoModelForCausalLM.from_pretrained("base")
    first = len(before)
    assert len(after) == model.config.vocab_size == first + 2
    assert after.encode("老师在公园里") == [first + 1, first]
    assert [after.encode(text) for text in ENGLISH] == [before.encode(text) for text in ENGLISH]
    rows_VD = old.get_input_embeddings().weight
    spelling_D = rows_VD[before.encode("公园里")].mean(0)
    assert torch.allclose(model.get_input_embeddings().weight[first], spelling_D, atol=1e-6)
    assert torch.equal(model.get_input_embeddings().weight[:first], rows_VD)
    assert main(["vocab", "base", "--corpus", "zh.txt", "--out", "both", "--rows", "30", "--word-list", "words.txt"]) == 0
    proof = json.loads((case / "both" / "verify.json").read_text(encoding="utf-8"))
    assert (proof["words"], proof["reachable"], proof["new_pieces"], proof["unreachable"]) == (2, 32, 32, [])


def test_advice_leaves_nothing_and_force_goes_on(case: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (case / "mixed.txt").write_text("\n".join([*ENGLISH, "好好学习"]) + "\n", encoding="utf-8")
    arguments = ["vocab", "base", "--corpus", "mixed.txt", "--out", "out", "--rows", "3", "--init", "mean"]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    advice = [line for line in out.splitlines() if "nothing was extended" in line]
    assert "zhlm:" not in err and len(advice) == 1 and "(below 0.9)" in advice[0] and "--force" in advice[0]
    assert not (case / "out").exists()
    assert main([*arguments, "--force"]) == 0
    assert "advice" in capfd.readouterr().out and (case / "out" / "verify.json").is_file()


def test_mistakes_write_nothing(case: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = ["base", "--corpus", "zh.txt", "--out", "out"]
    (case / "words.txt").write_text("公园\n公园\n", encoding="utf-8")
    for arguments, says in [
        ([*good, "--rows", "-1"], "vocab.add_rows is -1; input should be greater than or equal to 0"),
        ([*good, "--rows", "many"], "vocab.add_rows is 'many'"),
        ([*good, "--rows", "9999", "--set", "vocab.min_gain=0"], "add_rows is 9,999, but the new streams give only"),
        ([*good, "--init", "best"], "vocab.init is 'best'"),
        ([*good, "--word-list", "words.txt"], "line 2 has '公园', which line 1 has too"),
        ([*good, "--set", "vocab.rows=3"], "unknown key vocab.rows"),
        (["base", "--corpus", "en.txt", "--out", "out"], "has a token for each letter of new"),
        (["base", "--corpus", "none.txt", "--out", "out"], "none.txt does not exist"),
        (["base", "--corpus", "zh.txt", "--out", "base"], "the folder base is not empty"),
        (["base", "--corpus", "zh.txt", "--out", "zh.txt"], "zh.txt is a file"),
        (["./nobase", "--corpus", "zh.txt", "--out", "out"], "the folder ./nobase does not exist"),
        (["base", "--corpus", "zh.txt"], "--out missing"),
    ]:
        refused(arguments, says, capfd, case)


def test_bases_that_cannot_be_extended(case: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_base(case / "short", GPT2)
    model = AutoModelForCausalLM.from_pretrained("short")
    model.resize_token_embeddings(100)
    model.save_pretrained("short")
    refused(["short", "--corpus", "zh.txt", "--out", "out"], "entries but the embedding only 100 rows", capfd, case)
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    PreTrainedTokenizerFast(tokenizer_object=unigram).save_pretrained("base")
    refused(["base", "--corpus", "zh.txt", "--out", "out"], "cannot extend a Unigram tokenizer", capfd, case)
