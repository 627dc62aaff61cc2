"""Writes the sample corpus: stories of both languages, in every format that the readers know, held-out ones apart.

    <lang>/train/part-0.txt part-1.txt part-2.jsonl part-3.jsonl.gz part-4.parquet part-5.parquet
    <lang>/held_out/held_out.jsonl

So that cleaning and deduplication have something to count, each language's training files also hold EXACT_COPIES stories a second time
and the JUNK documents; neither counts as a document of the corpus.
"""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zhlm.config.schema import SampleCorpusConfig
from zhlm.records import Progress, Report
from zhlm.sample.entropy import exact_entropy
from zhlm.sample.grammar import LANGUAGES, Language, sample, write

PARTS = ("part-0.txt", "part-1.txt", "part-2.jsonl", "part-3.jsonl.gz", "part-4.parquet", "part-5.parquet")
EXACT_COPIES = 40
JUNK = ("", " ", "\t", "?", "\u0000", "\u0001\u0002\u0003", "\u200b", "\ufffd")
"""Empty, blank, too short, or nothing but control characters; in JSONL and Parquet only, since a text file passes over blank lines."""


def write_corpus(config: SampleCorpusConfig, folder: Path, report: Report) -> dict[str, Any]:
    """Fill a folder with both languages; per language, how much there is and the exact entropy of its stories."""
    facts: dict[str, Any] = {}
    for done, language in enumerate(LANGUAGES):
        report(Progress("sample", done, len(LANGUAGES), "languages"))
        facts[language] = _write_language(language, config, folder / language)
    return facts


def stories(language: Language, count: int, seed: int) -> list[str]:
    """Independent stories of one language; the two languages draw apart, so neither corpus translates the other."""
    rng = random.Random(f"{language}-{seed}")
    return [write(sample(rng), language) for _ in range(count)]


def _write_language(language: Language, config: SampleCorpusConfig, folder: Path) -> dict[str, Any]:
    texts = stories(language, config.documents, config.seed)
    held_out, training = texts[: config.held_out_documents], texts[config.held_out_documents :]
    _write_part(folder / "held_out" / "held_out.jsonl", held_out)
    rng = random.Random(config.seed)
    copies = rng.sample(training, min(EXACT_COPIES, len(training) // 100))
    shares = [training[i :: len(PARTS)] for i in range(len(PARTS))]
    for i, copy in enumerate(copies):
        # Into the next part: most copies lie in another file than their original.
        shares[(i + 1) % len(PARTS)].append(copy)
    junk = JUNK if len(training) >= 100 * len(JUNK) else JUNK[: len(training) // 100]
    for i, text in enumerate(junk):
        share = shares[2 + i % (len(PARTS) - 2)]
        share.insert(rng.randrange(len(share) + 1), text)
    for name, share in zip(PARTS, shares, strict=True):
        _write_part(folder / "train" / name, share)
    entropy = exact_entropy(language)
    return {
        "documents": len(texts),
        "held_out_documents": len(held_out),
        "exact_copies": len(copies),
        "junk_documents": len(junk),
        "bytes": sum(len(t.encode("utf-8")) for t in texts),
        "characters": sum(map(len, texts)),
        "entropy_bits_per_document": entropy.bits_per_document,
        "entropy_bits_per_character": entropy.bits_per_character,
        "entropy_bits_per_byte": entropy.bits_per_byte,
    }


def _write_part(path: Path, texts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": list(texts)}), path, row_group_size=1024)
        return
    lines = texts if path.suffix == ".txt" else [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    # Without the time that gzip would note, the same corpus is the same bytes.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
