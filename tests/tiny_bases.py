"""Tiny bases of every class that is pretrained here, each with a tokenizer of the kind that the class has: folders made on the spot, the
same each time."""

import json
import string
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from trained_tokenizers import ENGLISH, chinese_texts, train

POSITIONS = 128
COMMON = "的一是不了人在有我他这中大来上个国和说们为子时你那出也得里后自以会家可下过天去能对小多然于心学之都好看起发当没成只如事把还用第样"
CHARACTERS = sorted({char for text in [*chinese_texts(), COMMON] for char in text if char > "\u2000"})
"""Of the Chinese fixtures and some more: Han, full-width punctuation, an emoji."""
WORDS = sorted({word.strip(".,;'").lower() for text in ENGLISH for word in text.split() if "'" not in word} - {""})


def bert_tokenizer(**special: str) -> BertTokenizer:
    """WordPiece as in bert-base-chinese: each Han character is a word, Latin words are lower case."""
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = ["[PAD]", *(f"[unused{n}]" for n in range(1, 5)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *letters]
    pieces += [*(f"##{letter}" for letter in letters), *CHARACTERS, *(f"##{char}" for char in CHARACTERS), *WORDS]
    return BertTokenizer(vocab={piece: row for row, piece in enumerate(dict.fromkeys(pieces))}, model_max_length=POSITIONS, **special)


def gpt2_tokenizer() -> GPT2Tokenizer:
    """Byte-level BPE of English, with <|endoftext|> as GPT-2 has it: both bos and eos, and no token for padding."""
    vocab, merges = _byte_level()
    return GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS)


def t5_tokenizer() -> T5Tokenizer:
    """Unigram with 100 sentinels at the end, the first of them last, as T5 has them."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = ["\u2581", *(f"\u2581{word}" for word in WORDS), *string.ascii_letters, *string.digits, *string.punctuation, *CHARACTERS]
    scored = [(piece, -2.0 - 0.01 * rank) for rank, piece in enumerate(dict.fromkeys(pieces))]
    sentinels = [(f"<extra_id_{n}>", 0.0) for n in range(99, -1, -1)]
    return T5Tokenizer(vocab=[*special, *scored, *sentinels], model_max_length=POSITIONS)


def bert_folder(path: Path) -> Path:
    """BertForMaskedLM with a BertTokenizer."""
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=POSITIONS, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _saved(path, BertForMaskedLM, config, tokenizer)


def roberta_folder(path: Path) -> Path:
    """RobertaForMaskedLM with byte-level BPE; its positions start behind the id of padding."""
    vocab, merges = _byte_level()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece in vocab if piece != "<|endoftext|>"), "<mask>"]
    tokenizer = RobertaTokenizer(vocab={piece: row for row, piece in enumerate(pieces)}, merges=merges, model_max_length=POSITIONS)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=POSITIONS + 2, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return _saved(path, RobertaForMaskedLM, config, tokenizer)


def t5_folder(path: Path, *, tied: bool = True) -> Path:
    """T5ForConditionalGeneration with a T5Tokenizer; mT5's tables are not tied."""
    tokenizer = t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2, tie_word_embeddings=tied,
        feed_forward_proj="relu" if tied else "gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return _saved(path, T5ForConditionalGeneration, config, tokenizer)


def gpt2_folder(path: Path, *, wordpiece: bool = False, width: int = 32) -> Path:
    """GPT2LMHeadModel with byte-level BPE, or with the BertTokenizer that Chinese ones often have."""
    tokenizer = bert_tokenizer() if wordpiece else gpt2_tokenizer()
    # With 50,256, its usual ids, transformers warns about each smaller vocabulary.
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=width, n_layer=2, n_head=2, **ends)
    return _saved(path, GPT2LMHeadModel, config, tokenizer)


def bloom_folder(path: Path) -> Path:
    """BloomForCausalLM with byte-level BPE that pads on the left."""
    vocab, merges = _byte_level()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    pieces = [*special, *(piece for piece in vocab if piece != "<|endoftext|>")]
    backend = gpt2_tokenizer().backend_tokenizer
    spec = json.loads(backend.to_str())
    spec["model"] |= {"vocab": {piece: row for row, piece in enumerate(pieces)}, "merges": [list(merge) for merge in merges]}
    spec["added_tokens"] = [
        {"id": row, "content": text, "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        for row, text in enumerate(special)
    ]
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=type(backend).from_str(json.dumps(spec)), padding_side="left", **names)
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=3
    )  # fmt: skip
    return _saved(path, BloomForCausalLM, config, tokenizer)


def _byte_level() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges."""
    model = json.loads(train("gpt2").backend_tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def _saved(path: Path, kind: type[PreTrainedModel], config: object, tokenizer: PreTrainedTokenizerBase) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
