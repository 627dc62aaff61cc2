"""What stands around documents in blocks, by the tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import run_data
from tiny_bases import bert_tokenizer, gpt2_tokenizer, t5_tokenizer
from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError
from zhlm.pack.job import _document_tokens, _stand_ins


def config_with(folder: Path, **pack: Any) -> RunConfig:
    return RunConfig.model_validate_json(json.dumps(run_data(folder) | {"pack": pack}))


def test_bert_has_stand_ins_and_they_are_told(tmp_path: Path) -> None:
    config, bert = config_with(tmp_path, document_start="bos"), bert_tokenizer()
    start, end = _document_tokens(config, bert)
    assert (start, end) == (("cls", "[CLS]", bert.cls_token_id), ("sep", "[SEP]", bert.sep_token_id))
    assert start and end
    said = _stand_ins({"start": start._asdict(), "end": end._asdict()})
    assert said == "; documents begin with [CLS] and end with [SEP], for the tokenizer has no bos or eos"


def test_others_have_their_own_and_nothing_is_told(tmp_path: Path) -> None:
    start, end = _document_tokens(config_with(tmp_path), gpt2_tokenizer())
    assert start is None and end is not None and end.role == "eos"
    assert _stand_ins({"start": None, "end": end._asdict()}) == ""


def test_what_is_missing_can_be_added(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has no bos token; set pack\.document_start: none, or add one with vocab\.special_tokens\.bos_token"
    ):
        _document_tokens(config_with(tmp_path, document_start="bos"), t5_tokenizer())
