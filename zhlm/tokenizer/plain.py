"""A tokenizer of the plain class that reads its tokenizer.json as it stands."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from zhlm.tokenizer.load import tokenizer_json

CLASS_SETTINGS = ("model_input_names", "padding_side", "truncation_side")
"""What classes of model families fix without writing it down (BERT's token_type_ids, Llama's padding on the left)."""


def as_plain(tokenizer: PreTrainedTokenizerFast, spec: Mapping[str, Any] | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with every setting of this one, and its tokenizer.json or another. The classes of model families (Qwen2Tokenizer,
    BertTokenizer ...) would build their own text cutting, and what they put around a text, again when the folder is loaded."""
    with tempfile.TemporaryDirectory(prefix="zhlm-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        settings_path = Path(folder) / "tokenizer_config.json"
        settings = json.loads(settings_path.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings |= {
            name: value for name in CLASS_SETTINGS if (value := getattr(tokenizer, name)) != getattr(PreTrainedTokenizerFast, name)
        }
        settings_path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        text = tokenizer_json(tokenizer) if spec is None else json.dumps(spec, ensure_ascii=False)
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
        plain: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    plain.name_or_path = tokenizer.name_or_path
    plain.init_kwargs["name_or_path"] = tokenizer.name_or_path
    return plain
