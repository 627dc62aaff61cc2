"""A tokenizer of English prose, and what the vocab stage's functions make of it: what the benchmarks of vocabularies share."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.corpus import REAL, VOCABULARY, texts_of

SHARE = 10
"""One of so many documents is measured on; the others are learned from."""
EOS = "<|endoftext|>"


def documents(name: str) -> list[str]:
    """A real file's documents, as the vocab stage reads them."""
    from zhlm.text.normalise import normalise

    return [normalise(text) for text in texts_of(REAL / f"{name}.jsonl")]


def train_bpe(texts: Sequence[str], vocabulary: int, special: Sequence[str] = ()) -> Any:
    """A byte-level BPE from scratch, by the `tokenizers` library."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def english_base(vocabulary: int = VOCABULARY) -> Any:
    """A tokenizer trained on docs_en."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=train_bpe(documents("docs_en"), vocabulary, [EOS]), eos_token=EOS, bos_token=EOS)


def extended(tokenizer: Any, texts: Sequence[str], rows: int) -> tuple[Any, Any, Any]:
    """The tokenizer with so many pieces more, learned on texts; those pieces; what learning proposed."""
    from zhlm.pieces.kinds import take_apart
    from zhlm.pieces.learn import learn
    from zhlm.pieces.reach import extend_reachable

    base = take_apart(tokenizer.backend_tokenizer)
    proposed = learn(Counter(p for text in texts for p in base.pre_tokens(text)), base, rows)
    return *extend_reachable(tokenizer, base, proposed, texts), proposed
