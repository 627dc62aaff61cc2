"""What a model of each class makes of a prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, pipeline

from conftest import run_data, save_tiny_llama
from tiny_bases import bert_folder, bloom_folder, gpt2_folder, roberta_folder, t5_folder
from zhlm.config.load import dump_config
from zhlm.config.prompts import check_masks
from zhlm.config.schema import GenerateConfig, RunConfig
from zhlm.errors import RunError
from zhlm.evaluate.generate import _filled, answer, generate, run_generate, write
from zhlm.evaluate.models import load
from zhlm.objectives.span_corruption import sentinel_ids
from zhlm.storage import Run
from zhlm.tokenizer.decode import decode

CPU = torch.device("cpu")
GREEDY = GenerateConfig(temperature=0, max_new_tokens=8)
SAMPLED = GenerateConfig(temperature=1.0, top_p=0.9, max_new_tokens=12)


def loaded(folder: Path) -> tuple[Any, Any]:
    model, tokenizer = load(str(folder), CPU)
    with torch.no_grad():
        for parameter in model.parameters():  # freshly initialised models barely tell tokens apart
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model, tokenizer


def config_of(folder: Path, objective: str) -> RunConfig:
    return RunConfig.model_validate(run_data(folder) | {"objective": objective})


@pytest.mark.parametrize("wordpiece", [True, False])
def test_gpt2_and_bloom_write_as_transformers_does(tmp_path: Path, wordpiece: bool) -> None:
    model, tokenizer = loaded(gpt2_folder(tmp_path, wordpiece=True) if wordpiece else bloom_folder(tmp_path))
    prompt = "今天早上"
    written = generate(model, tokenizer, prompt, SAMPLED, 5)
    assert len(written) == 5 and len(set(written)) > 1
    assert generate(model, tokenizer, prompt, SAMPLED, 5) == written
    ends = {"eos_token_id": tokenizer.sep_token_id if wordpiece else tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    rule = GenerationConfig(max_new_tokens=12, do_sample=True, top_p=0.9, top_k=0, num_return_sequences=5, **ends)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SAMPLED.seed)
        rows = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=rule)
    decoded = tokenizer.batch_decode(rows, skip_special_tokens=True)
    assert [(prompt + text).replace(" ", "") for text in written] == [text.replace(" ", "") for text in decoded]
    greedy = generate(model, tokenizer, prompt, GREEDY, 2)
    assert len(greedy) == 2 and len(set(greedy)) == 1


def test_no_spaces_between_han_characters(tmp_path: Path) -> None:
    _, tokenizer = load(str(gpt2_folder(tmp_path / "wordpiece", wordpiece=True)), CPU)
    text = "今天下午三点，老师在图书馆（the library）看书。"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert " " in tokenizer.decode(ids).replace("the library", "")
    assert decode(tokenizer, ids) == text
    assert decode(tokenizer, tokenizer("the small book", add_special_tokens=False)["input_ids"]) == "the small book"
    _, spaced = load(str(bloom_folder(tmp_path / "bytes")), CPU)
    assert decode(spaced, spaced("今天 下午")["input_ids"]) == "今天 下午"  # it keeps what there was


def test_what_a_base_says_about_generation_is_left_out(tmp_path: Path) -> None:
    folder = bloom_folder(tmp_path)
    GenerationConfig(repetition_penalty=5.0, max_new_tokens=1).save_pretrained(folder)
    model, _ = load(str(folder), CPU)
    assert model.generation_config.repetition_penalty is None


def continued(model: Any, ids: list[int], prefix: int, count: int) -> list[int]:
    """Greedy, each token by a pass over all without a cache; the first `prefix` tokens see each other."""
    ids = list(ids)
    for _ in range(count):
        sees = torch.ones(len(ids), len(ids)).tril()
        sees[:prefix, :prefix] = 1
        mask = torch.zeros(sees.shape).masked_fill(sees == 0, torch.finfo(torch.float32).min)[None, None]
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), attention_mask=mask).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("make", [gpt2_folder, save_tiny_llama])
def test_a_prefix_model_sees_its_prompt_both_ways(tmp_path: Path, make: Any) -> None:
    model, tokenizer = loaded(make(tmp_path))
    ids = tokenizer("book", add_special_tokens=False)["input_ids"] * 3
    prompt = tokenizer.decode(ids)
    expected = continued(model, ids, len(ids), GREEDY.max_new_tokens)
    assert continued(model, ids, 0, GREEDY.max_new_tokens) != expected  # read only backwards
    end = next((n for n, i in enumerate(expected) if n >= len(ids) and i == tokenizer.eos_token_id), len(expected))
    assert generate(model, tokenizer, prompt, GREEDY, 2, prefix=True) == [decode(tokenizer, expected[:end])[len(prompt) :]] * 2
    sampled = generate(model, tokenizer, prompt, SAMPLED, 4, prefix=True)
    assert len(set(sampled)) > 1 and generate(model, tokenizer, prompt, SAMPLED, 4, prefix=True) == sampled
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("make", [bert_folder, roberta_folder])
def test_the_five_best_tokens_for_each_mask(tmp_path: Path, make: Any) -> None:
    model, tokenizer = loaded(make(tmp_path))
    config, mask = config_of(tmp_path, "masked"), tokenizer.mask_token
    found = answer(config, model, tokenizer, f"今天{mask}早上", GREEDY)
    expected = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")(f"今天{mask}早上")
    (guesses,) = found.guesses
    assert [g.token_id for g in guesses] == [e["token"] for e in expected] and len(guesses) == 5
    assert [g.score for g in guesses] == pytest.approx([e["score"] for e in expected], rel=1e-4)
    assert found.texts == ["\n".join(f"{g.token.strip()} {g.score:.3f}" for g in guesses)]
    two = answer(config, model, tokenizer, f"{mask}天{mask}上", GREEDY)
    assert len(two.guesses) == 2 and two.texts[0].splitlines()[0::6] == ["mask 1", "mask 2"]
    with pytest.raises(RunError, match=r"has \d+ tokens and the model \d+ positions"):
        answer(config, model, tokenizer, f"字{mask}" * 200, GREEDY)


def test_a_prompt_without_a_mask_is_one_line(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "base")
    _, tokenizer = load(str(folder), CPU)
    message = r"^generate: .*base is a masked model, .* does not continue a text; put \[MASK\] into the prompt '今天'"
    with pytest.raises(RunError, match=message) as caught:
        check_masks(config_of(tmp_path, "masked"), ["今[MASK]", "今天"], tokenizer.mask_token)
    assert "\n" not in str(caught.value)
    check_masks(config_of(tmp_path, "causal"), ["今天"], tokenizer.mask_token)


def test_sentinels_of_the_prompt_are_filled(tmp_path: Path) -> None:
    model, tokenizer = loaded(t5_folder(tmp_path))
    sentinels = sentinel_ids(tokenizer)
    book, table = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("small book", "table"))
    ids = [0, sentinels[0], *book, sentinels[1], *table, sentinels[2], 1]
    assert _filled(tokenizer, "The <extra_id_0> on the <extra_id_1>.", ids, sentinels) == "The small book on the table."
    assert _filled(tokenizer, "a <extra_id_5> b", ids, sentinels) == "a <extra_id_5> b"  # which it did not fill
    for prompt in ("The teacher reads <extra_id_0> book.", "The teacher"):
        written = write(model, tokenizer, prompt, SAMPLED, 5)
        assert len(written) == 5 and write(model, tokenizer, prompt, SAMPLED, 5) == written
    with pytest.raises(RunError, match="the prompt is empty"):
        write(model, tokenizer, " ", GREEDY)


def test_text_to_text_is_what_transformers_writes(tmp_path: Path) -> None:
    model, tokenizer = loaded(t5_folder(tmp_path))
    inputs = tokenizer("The teacher reads", return_tensors="pt")
    rule = GenerationConfig(max_new_tokens=8, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    expected = tokenizer.batch_decode(model.generate(**inputs, generation_config=rule), skip_special_tokens=True)
    assert write(model, tokenizer, "The teacher reads", GREEDY, 1) == expected


@pytest.mark.parametrize(
    ("make", "objective", "prompt"), [(bert_folder, "masked", "今天[MASK]早上"), (t5_folder, "span_corruption", "The <extra_id_0>")]
)
def test_zhlm_generate_shows_the_answers_of_both(tmp_path: Path, make: Any, objective: str, prompt: str) -> None:
    make(tmp_path / "base")
    config = config_of(tmp_path, objective)
    run = Run.of(config)
    run.config.write_text(dump_config(config))
    make(run.export.path / "merged")
    (run.export / "manifest.json").write_text("{}")
    how = {"top_p": 0.9, "temperature": 0.8, "num_return_sequences": 2, "max_new_tokens": 5, "seed": 1}
    text = run_generate(str(run.folder), [prompt], **how)
    assert text.startswith(f"> {prompt}\n\nbase")
    # Guesses are no texts that are drawn several times.
    assert text.count("adapted") == (1 if objective == "masked" else 2)
    if objective == "masked":
        with pytest.raises(RunError, match=r"put \[MASK\] into the prompt 'abc'"):
            run_generate(str(run.folder), ["abc"], **how)
