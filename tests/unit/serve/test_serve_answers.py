"""Questions of requests on tiny models: what is refused, what is computed together, and that it is what the model says of each alone."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import HTTPException
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tiny_bases import bert_folder, gpt2_folder, t5_folder
from zhlm.serve.answers import Continuation, FillMask, TextToText
from zhlm.serve.protocol import FillMaskRequest, Request, TextToTextRequest

MASKED = ["今天天[MASK]很好", "the [MASK] reads the [MASK] book in the park", "[MASK]"]
TEXTS = ["the teacher reads", "今天天气<extra_id_0>好，我<extra_id_1>看书", "a"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> FillMask:
    folder = bert_folder(tmp_path_factory.mktemp("bert"))
    return FillMask(AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), 128)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> TextToText:
    folder = t5_folder(tmp_path_factory.mktemp("t5"))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        model.shared.weight[1] = 0  # eos is never the likeliest, so that texts are as long as they may be
    return TextToText(model, AutoTokenizer.from_pretrained(folder), 40)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Continuation:
    folder = gpt2_folder(tmp_path_factory.mktemp("gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Continuation(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer, 128, start_ids=(tokenizer.eos_token_id,))


def _answers(answerer: Any, texts: list[str], *requests: Request) -> list[Any]:
    """Each text with its own request, or all with one, in one batch."""
    each = requests * len(texts) if len(requests) == 1 else requests
    deadline_s = time.monotonic() + 60
    return list(answerer.answer([answerer.question("input", t, r, deadline_s) for t, r in zip(texts, each, strict=True)]))


def _refused(answerer: Any, text: str, request: Request) -> str:
    with pytest.raises(HTTPException) as caught:
        answerer.question("input", text, request, 0.0)
    assert caught.value.status_code == 400
    return str(caught.value.detail)


def test_masks_of_a_batch_are_guessed_as_alone_each_with_its_own_number(bert: FillMask) -> None:
    requests = [FillMaskRequest(input="", top_k=k) for k in (1, 4, 2)]
    together = _answers(bert, MASKED, *requests)
    assert [[len(guesses) for guesses in answer.masks] for answer in together] == [[1], [4, 4], [2]]
    for text, request, answer in zip(MASKED, requests, together, strict=True):
        (alone,) = _answers(bert, [text], request)
        assert answer.text == alone.text
        for ours, others in zip(answer.masks, alone.masks, strict=True):
            assert [g.token_id for g in ours] == [g.token_id for g in others]
            assert [g.score for g in ours] == pytest.approx([g.score for g in others], abs=1e-6)


def test_the_text_is_filled_with_the_best_of_each_mask(bert: FillMask) -> None:
    (answer,) = _answers(bert, [MASKED[1]], FillMaskRequest(input=""))
    assert "[MASK]" not in answer.text
    assert answer.masks[0][0].text.count("[MASK]") == 1, "a guess leaves the other mask as it is"


def test_what_fill_mask_refuses(bert: FillMask) -> None:
    request = FillMaskRequest(input="")
    assert _refused(bert, "今天天气", request) == "input has no mask token; write [MASK] in the place of what is to be guessed"
    assert _refused(bert, " \n", request) == "input is empty; send a text"
    assert _refused(bert, "天" * 126 + "[MASK]", request) == "input has 129 tokens, the limit is 128; shorten it"
    assert len(bert.question("input", "天" * 125 + "[MASK]", request, 0.0).ids) == 128


def test_a_batch_is_written_as_alone(t5: TextToText) -> None:
    together = _answers(t5, TEXTS, TextToTextRequest(input="", max_new_tokens=12))
    for text, answer in zip(TEXTS, together, strict=True):
        inputs = t5.tokenizer(text, return_tensors="pt")
        row = t5.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        assert answer.texts == [t5.tokenizer.decode([i for i in row.tolist() if i not in (0, 1)])]


def test_requests_with_other_settings_in_one_batch_get_their_own(t5: TextToText) -> None:
    short, long = (TextToTextRequest(input="", max_new_tokens=n) for n in (2, 9))
    sampled = TextToTextRequest(input="", max_new_tokens=3, temperature=0.9, top_p=0.8, num_return_sequences=4)
    torch.manual_seed(0)
    answers = _answers(t5, [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[0]], short, sampled, long, short)
    assert [len(a.texts) for a in answers] == [1, 4, 1, 1]
    assert answers[0].texts == answers[3].texts == _answers(t5, [TEXTS[0]], short)[0].texts
    assert answers[2].texts == _answers(t5, [TEXTS[1]], long)[0].texts


def test_like_requests_are_generated_in_one_call(t5: TextToText) -> None:
    calls: list[tuple[int, Any]] = []

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any) -> torch.Tensor:
        calls.append((len(input_ids), generation_config))
        return input_ids.repeat_interleave(generation_config.num_return_sequences, 0)

    real = t5.model
    model = SimpleNamespace(config=real.config, generation_config=real.generation_config, device=real.device, generate=generate)
    few = TextToTextRequest(input="others are no other settings", max_new_tokens=5)
    many = TextToTextRequest(input="", max_new_tokens=30, temperature=0.5, top_p=0.9, num_return_sequences=2)
    texts = ["the teacher", "a park", "the park", "a teacher"]
    answers = _answers(TextToText(model, t5.tokenizer, None), texts, few, many, few.model_copy(update={"input": ""}), many)
    assert [a.texts for a in answers] == [["the teacher"], ["a park"] * 2, ["the park"], ["a teacher"] * 2]
    assert [(rows, rule.max_new_tokens, rule.do_sample) for rows, rule in calls] == [(2, 5, False), (2, 30, True)]
    assert (calls[1][1].temperature, calls[1][1].top_p, calls[1][1].top_k) == (0.5, 0.9, 0)
    assert all(0 < rule.max_time <= 60 and rule.decoder_start_token_id == 0 for _, rule in calls)


def test_nobody_waits_so_nothing_more_is_written(t5: TextToText) -> None:
    question = t5.question("input", TEXTS[1], TextToTextRequest(input="", max_new_tokens=40), time.monotonic() - 1)
    (late,) = t5.answer([question])
    (whole,) = _answers(t5, [TEXTS[1]], TextToTextRequest(input="", max_new_tokens=40))
    assert len(late.texts[0]) < len(whole.texts[0])


def test_what_text_to_text_refuses(t5: TextToText) -> None:
    request = TextToTextRequest(input="")
    assert _refused(t5, "", request) == "input is empty; send a text"
    assert _refused(t5, "天" * 41, TextToTextRequest(input="", max_new_tokens=1)).endswith("tokens, the limit is 40; shorten it")
    assert _refused(t5, "天", request) == "max_new_tokens is 64, the limit is 40; lower it"


def test_prompts_of_any_length_are_continued_as_alone(prefix: Continuation) -> None:
    prompts, request = ["the teacher reads the small book", "a", "my sister"], TextToTextRequest(input="", max_new_tokens=10)
    together = _answers(prefix, prompts, request)
    assert together == [_answers(prefix, [prompt], request)[0] for prompt in prompts]
    assert prefix.question("input", "a", request, 0.0).ids[0] == prefix.tokenizer.eos_token_id
    assert not together[0].texts[0].startswith(prompts[0])


def test_prompt_and_answer_share_the_positions_of_a_prefix_model(prefix: Continuation) -> None:
    line = _refused(prefix, "a", TextToTextRequest(input="", max_new_tokens=127))
    assert line == "input has 2 tokens and max_new_tokens is 127, the limit of both is 128; lower one"
    prefix.question("input", "a", TextToTextRequest(input="", max_new_tokens=126), 0.0)
