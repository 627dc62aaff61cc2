"""Generation by prefix models, against a loop without a cache whose mask says who sees whom."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from conftest import save_tiny_llama
from tiny_bases import gpt2_folder
from zhlm.inference.both_ways import prompts_seen_both_ways
from zhlm.inference.fill_mask import pad_rows

PROMPTS = [[5, 17, 9, 30, 12, 44], [7], [21, 3, 8]]
NEW_TOKENS = 8


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    folder = save_tiny_llama(tmp_path) if request.param == "llama" else gpt2_folder(tmp_path)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.inference_mode()
def _slowly(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy. Every token sees those before it and the whole prompt."""
    ids = list(prompt)
    for _ in range(new_tokens):
        sees_TT = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        sees_TT[: len(prompt), : len(prompt)] = True
        added = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~sees_TT, torch.finfo(torch.float32).min)
        logits = model(input_ids=torch.tensor([ids]), attention_mask=added, position_ids=torch.arange(len(ids))[None]).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def _rule() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)


def _generated(model: Any, rows: list[list[int]]) -> list[list[int]]:
    ids_RT, mask_RT = pad_rows(rows, 0, left=True)
    written_RT = model.generate(input_ids=ids_RT, attention_mask=mask_RT, generation_config=_rule())
    return [list(row) for row in written_RT[:, ids_RT.shape[1] :].tolist()]


def test_a_batch_of_prompts_is_continued_as_the_mask_says(model: Any) -> None:
    expected = [_slowly(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
    with prompts_seen_both_ways(model):
        assert _generated(model, PROMPTS) == expected


def test_before_and_after_it_a_prompt_is_read_causally(model: Any) -> None:
    with torch.inference_mode():
        last = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
        with prompts_seen_both_ways(model):
            ids = torch.tensor(PROMPTS[:1])
            seen = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        after = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
    assert torch.allclose(last, after, atol=1e-6)
    assert not torch.allclose(last, seen, atol=1e-4)
