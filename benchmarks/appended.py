"""The usual way to extend a SentencePiece vocabulary, put to the proof: train a second model on Chinese, append its pieces to the base's.

That is what the best-known scripts do, with a score of 0 for every appended piece; the merges are made up from the list afterwards.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpus import REAL, texts_of

FILES = ("docs_zh", "poems_zh", "docs_en")
BASE_PIECES, CHINESE_PIECES = 8000, 12_000
CHARACTERS = 6_000_000
"""Learned from, for each of the two."""
SHOWN = 10


def run() -> dict[str, Any]:
    """How many of the appended pieces no text produces, and on how many texts the engines agree."""
    from zhlm.cli import main

    with tempfile.TemporaryDirectory(prefix="zhlm-bench-") as scratch:
        folder = Path(scratch)
        base = _trained(folder / "en", FILES[2:], BASE_PIECES)
        chinese = _trained(folder / "zh", FILES[:2], CHINESE_PIECES)
        _save(folder / "base", base)
        known = {piece.piece for piece in base.pieces}
        for piece in chinese.pieces:
            if piece.piece not in known:
                base.pieces.add(piece=piece.piece, score=0.0)
        _save(folder / "appended", base)
        corpus = [str(REAL / f"{name}.jsonl") for name in FILES]
        with contextlib.redirect_stdout(sys.stderr):
            main(["vocab", "--verify", str(folder / "appended"), "--base", str(folder / "base"), "--corpus", *corpus])
        found: dict[str, Any] = json.loads((folder / "appended" / "verify.json").read_text(encoding="utf-8"))
    texts, engines = found["texts"], found["engines"]
    return {
        "pieces": found["pieces"],
        "impossible": found["impossible"],
        "for_example": found["unreachable"][:SHOWN],
        "same_ids": {name: round(1 - engine["different"] / texts, 4) for name, engine in engines.items()},
    }


def _trained(prefix: Path, names: Sequence[str], pieces: int) -> Any:
    from sentencepiece import SentencePieceTrainer
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    SentencePieceTrainer.train(
        sentence_iterator=_lines(names), model_prefix=str(prefix), vocab_size=pieces, model_type="bpe", byte_fallback=True,
        character_coverage=0.995, normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=2, minloglevel=2,
    )  # fmt: skip
    model = protobuf.ModelProto()
    model.ParseFromString(prefix.with_suffix(".model").read_bytes())
    return model


def _lines(names: Sequence[str]) -> Iterator[str]:
    left = CHARACTERS
    for name in names:
        for text in texts_of(REAL / f"{name}.jsonl"):
            for line in text.split("\n"):
                left -= len(line)
                if left < 0:
                    return
                yield line


def _save(folder: Path, model: Any) -> None:
    """A Llama folder with the model, and the tokenizer.json that transformers makes of it."""
    from transformers import AutoTokenizer, LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(vocab_size=len(model.pieces), **sizes).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
