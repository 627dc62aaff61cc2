"""The benchmark corpus: JSONL files of 16 MB, as many as asked, made from 27 MB of real ones, and a byte-level BPE trained on a part of it.

A document takes the genre and the number of sentences of a real one, and sentences of that genre at random, so lengths are real and no
document comes twice. The same sentences would come back ten times, which flatters an engine that remembers the words it encoded. To a
byte-level pre-tokenizer a run of Chinese characters is one word; so a share of the runs gets the tail of another one, and new words are
then as frequent as in real text. Fixed seed; file n is the same however many are made; files that exist are kept.
"""

import json
import random
import re
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

REAL = Path(__file__).parents[2] / "shared" / "corpus"
GENRES = ("docs_zh", "poems_zh", "docs_en")
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "zhlm-benchmarks"
FILE_BYTES = 16_200_000
"""16 of them are 259 MB."""
SEED = 3
SPLICED_SHARE = 0.7
"""Of the runs of Chinese characters. With it, 22 of 100 words in 23 MB are new ones, made or real; with 0 only 15."""
VOCABULARY = 16_000
BPE_BYTES = 9_000_000
POSITIONS = 8192

_SENTENCE = re.compile("[^\u3002\uff01\uff1f\uff1b\n]*[\u3002\uff01\uff1f\uff1b\n]*")
_HAN_RUN = re.compile("[\u3400-\u9fff]{4,}")


class Genre:
    """What documents like those of one real file are made of."""

    def __init__(self, path: Path) -> None:
        texts = [[s for s in _SENTENCE.findall(text) if s.strip()] for text in texts_of(path)]
        self.num_sentences = [len(t) for t in texts]
        self._sentences = [s for t in texts for s in t]
        self._tails = [run[len(run) // 2 :] for s in self._sentences for run in _HAN_RUN.findall(s)] or [""]

    def document(self, rng: random.Random, spliced_share: float) -> str:
        """A new one."""

        def splice(run: re.Match[str]) -> str:
            text = run.group()
            return text[: len(text) // 2] + rng.choice(self._tails) if rng.random() < spliced_share else text

        sentences = rng.choices(self._sentences, k=rng.choice(self.num_sentences))
        return _HAN_RUN.sub(splice, "".join(sentences))


@dataclass(frozen=True)
class Corpus:
    """All that the benchmarks read, in one folder; what is missing is made."""

    folder: Path = DEFAULT_FOLDER
    spliced_share: float = SPLICED_SHARE

    @property
    def place(self) -> Path:
        return self.folder / f"spliced-{self.spliced_share:g}"

    def documents(self, seed: str) -> Iterator[str]:
        """Endless documents; the genres share them as the real files do."""
        rng = random.Random(f"{SEED}-{seed}")
        genres = [Genre(REAL / f"{name}.jsonl") for name in GENRES]
        shares = [len(g.num_sentences) for g in genres]
        while True:
            yield rng.choices(genres, shares)[0].document(rng, self.spliced_share)

    def files(self, count: int = 16) -> list[Path]:
        """The first files of the corpus."""
        if not REAL.is_dir():
            raise SystemExit(f"benchmarks: {REAL} does not exist, expected {', '.join(GENRES)} as .jsonl there; copy them there")
        paths = [self.place / f"{number:03d}.jsonl" for number in range(count)]
        missing = [path for path in paths if not path.exists()]
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(self._write_file, missing))
        return paths

    def _write_file(self, path: Path) -> None:
        write_lines(path, _up_to(FILE_BYTES, self.documents(path.stem)))

    def held_out(self) -> Path:
        """A small file for validation, so that no document of the corpus needs to be held out."""
        return self._small("held_out")

    def tiny(self) -> list[Path]:
        """A few small files to warm up on; no document of them is in the corpus."""
        return [self._small(f"tiny-{n}") for n in range(4)]

    def _small(self, name: str) -> Path:
        path = self.place / f"{name}.jsonl"
        if not path.exists():
            write_lines(path, islice(self.documents(name), 200))
        return path

    def base(self) -> Path:
        """A model folder as far as packing reads it: config.json and a 16k byte-level BPE, trained on the start of the corpus."""
        folder = self.place / "base"
        if (folder / "tokenizer_config.json").exists():
            return folder
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special, alphabet = "<|endoftext|>", pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[special], initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(_up_to(BPE_BYTES, texts_of(self.files(1)[0])), trainer)
        LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, eos_token_id=0).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special).save_pretrained(folder)
        return folder

    def make(self, files: int = 16) -> None:
        """Make everything, so that nothing of it falls into a measurement."""
        self.files(files)
        self.held_out()
        self.tiny()
        self.base()


def texts_of(path: Path) -> Iterator[str]:
    """The documents of a file, real or made."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield row.get("text") or row["completion"]


def write_lines(path: Path, texts: Iterable[str]) -> None:
    """A JSONL file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    temporary.rename(path)


def _up_to(num_bytes: int, texts: Iterator[str]) -> Iterator[str]:
    """Texts until their JSON lines have so many bytes."""
    taken = 0
    for text in texts:
        yield text
        taken += len(json.dumps({"text": text}, ensure_ascii=False).encode()) + 1
        if taken >= num_bytes:
            return


def parser(description: str | None) -> ArgumentParser:
    """The options that every benchmark has."""
    options = ArgumentParser(description=(description or "").split("\n")[0])
    options.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where the corpus is kept (default: %(default)s)")
    options.add_argument("--files", type=int, default=16, help="files of 16.2 MB (default: %(default)s)")
    options.add_argument("--spliced-share", type=float, default=SPLICED_SHARE, help="see benchmarks/corpus.py (default: %(default)s)")
    return options
