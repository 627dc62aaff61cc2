"""What stands in the place of masks, against transformers' own pipeline, and how the text reads then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from tiny_bases import bert_folder, bert_tokenizer, roberta_folder, t5_tokenizer
from zhlm.inference.fill_mask import fill, guess_masked, pad_rows, read_masked

FOLDERS = {"bert": bert_folder, "roberta": roberta_folder}


@pytest.fixture(scope="module", params=FOLDERS)
def masked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = FOLDERS[request.param](tmp_path_factory.mktemp(request.param))
    return AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_guesses_are_those_of_the_pipeline(masked: tuple[Any, Any]) -> None:
    model, tokenizer = masked
    mask = tokenizer.mask_token
    texts = [f"the {mask} reads a book", f"今天{mask}气很好", f"{mask} student in the {mask} park"]
    reference = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)
    for text, masks in zip(texts, guess_masked(model, tokenizer, [read_masked(tokenizer, t) for t in texts], 3), strict=True):
        expected = reference(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert [[g.token_id for g in guesses] for guesses in masks] == [[e["token"] for e in each] for each in expected]
        assert [g.token for guesses in masks for g in guesses] == [e["token_str"] for each in expected for e in each]
        for guesses, each in zip(masks, expected, strict=True):
            assert [g.score for g in guesses] == pytest.approx([e["score"] for e in each], abs=1e-6)


def test_guesses_do_not_depend_on_how_texts_are_grouped(masked: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = masked
    texts = [read_masked(tokenizer, "the book " * n + tokenizer.mask_token) for n in (1, 9, 3)]
    together = guess_masked(model, tokenizer, texts, 2)
    monkeypatch.setattr("zhlm.inference.bits.LOGITS_PER_BATCH", 1)
    alone = guess_masked(model, tokenizer, texts, 2)
    assert [[g.token_id for g in masks[0]] for masks in together] == [[g.token_id for g in masks[0]] for masks in alone]
    assert [masks[0][0].score for masks in together] == pytest.approx([masks[0][0].score for masks in alone], abs=1e-6)


def test_no_guess_is_a_row_that_only_pads_the_embedding(masked: tuple[Any, Any]) -> None:
    model, tokenizer = masked
    assert len(guess_masked(model, tokenizer, [read_masked(tokenizer, tokenizer.mask_token)], 10**6)[0][0]) == len(tokenizer)


def _filled(tokenizer: Any, text: str, *tokens: str) -> str:
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert tokenizer.unk_token_id not in ids
    return fill(tokenizer, text, read_masked(tokenizer, text).spans, ids)


def test_wordpiece_leaves_the_text_around_as_it_is() -> None:
    tokenizer = bert_tokenizer()
    assert _filled(tokenizer, "今天[MASK]气Very很好", "天") == "今天天气Very很好"
    assert _filled(tokenizer, "A [MASK], the Park", "teacher") == "A teacher, the Park"
    assert _filled(tokenizer, "the teach [MASK] [MASK]!", "##e", "park") == "the teache park!"


def test_byte_level_pieces_bring_their_spaces(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(roberta_folder(tmp_path))
    word = next(t for t in tokenizer.get_vocab() if t.startswith("\u0120") and len(t) > 3)
    plain = word[1:]
    assert _filled(tokenizer, "in <mask> park", word) == f"in {plain} park"
    assert _filled(tokenizer, "in<mask> park", word) == f"in {plain} park"
    assert _filled(tokenizer, "<mask> park", word) == f"{plain} park"
    assert _filled(tokenizer, "in <mask>", "s").endswith("s")


def test_sentencepiece_pieces_bring_their_spaces() -> None:
    tokenizer = t5_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    assert _filled(tokenizer, "in<mask> park", "\u2581the") == "in the park"
    assert _filled(tokenizer, "in <mask> park", "\u2581the") == "in the park"
    assert _filled(tokenizer, "in <mask>x", "s") == "in sx"


def test_a_text_without_masks_has_no_spans() -> None:
    assert read_masked(bert_tokenizer(), "今天").spans == []


def test_rows_are_padded_on_the_side_asked_for() -> None:
    ids_RT, mask_RT = pad_rows([[5, 6, 7], [8]], 0)
    assert (ids_RT.tolist(), mask_RT.tolist()) == ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    ids_RT, mask_RT = pad_rows([[5, 6, 7], [8]], 0, left=True)
    assert (ids_RT.tolist(), mask_RT.tolist()) == ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    assert ids_RT.dtype == mask_RT.dtype == torch.long
