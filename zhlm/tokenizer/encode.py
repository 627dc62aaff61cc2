"""Texts -> token ids, fast: two engines behind one interface, and the proof that they agree before the faster one is used.

Shape letters: N texts, I ids of all texts.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import gigatoken
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from zhlm.errors import BaseModelError

Engine = Literal["gigatoken", "tokenizers"]
Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]

HARD_TEXTS = (
    "",
    " ",
    "\n\n  \t \r\n x",
    "a  b   c    d",
    "今天天气很好，我们去公园散步。",
    "臺灣的繁體字：龍、龜、鬱。",
    "生僻字𠮷𪚥𬺰",
    "全角ＡＢＣ　１２３！",  # noqa: RUF001 - full width is the point
    "2024年3月15日 3.14% ￥1,000",
    "👨‍👩‍👧🇨🇳👍🏽",
    "e\u0301 \u00e9 \u200d \ufeff \x00 \ufffd",
    'def f(x):\n    return {"值": x}  # don\'t',
)
"""Texts on which engines are known to differ; they must agree here too, not on the corpus alone."""


TEXTS_AT_ONCE = 256
"""Handed to `tokenizers`, whose encodings take a hundred bytes a token: more of them leave the processor's cache, and cost a sixth of the
speed."""


class Encoder(Protocol):
    """An engine with one tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """The ids of all texts in one array, without special tokens around them; text n is ids[offsets[n]:offsets[n + 1]].

        Shapes: ids_I, offsets_N1 (one more than the texts).
        """
        ...


class TokenizersEncoder:
    """The reference: the `tokenizers` library that the model was trained with."""

    def __init__(self, tokenizer_json: str, parallel: bool = True) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # A tokenizer.json may carry the settings of its last use; cutting or padding here would change the corpus.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._parallel = parallel

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        rows: list[Ids] = []
        with _tokenizers_parallelism(self._parallel):
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                encodings = self._tokenizer.encode_batch_fast(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)
                rows += [np.array(e.ids, np.uint32) for e in encodings]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(r) for r in rows], out=offsets[1:])
        return np.concatenate([np.empty(0, np.uint32), *rows]), offsets


class GigatokenEncoder:
    """The fast engine; use it through `choose_encoder`, which proves that it agrees with the reference."""

    def __init__(self, tokenizer_json: str, parallel: bool = True) -> None:
        self._tokenizer = gigatoken.Tokenizer.from_json(tokenizer_json)
        self._parallel = parallel

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        layout = self._tokenizer.encode_batch(list(texts), parallel=self._parallel).layout
        ids, offsets = np.asarray(layout.content.data, np.uint32), np.asarray(layout.offsets.data, np.int64)
        return ids[offsets[0] : offsets[-1]], offsets - offsets[0]


def make_encoder(engine: Engine, tokenizer_json: str, parallel: bool = True) -> Encoder:
    """The named engine. `parallel`: use every core of the machine, not one.

    Raises: whatever the engine raises for a tokenizer that it cannot load.
    """
    return (GigatokenEncoder if engine == "gigatoken" else TokenizersEncoder)(tokenizer_json, parallel)


def choose_encoder(
    tokenizer_json: str, engine: Literal["auto", "gigatoken", "tokenizers"], sample_texts: Sequence[str]
) -> tuple[Encoder, dict[str, Any]]:
    """The engine to use with a tokenizer, and the facts of the choice: which, why, and on how much it was proved.

    gigatoken is taken only when it gives the same ids as the reference on HARD_TEXTS, the special tokens and the sample.

    Raises: BaseModelError when gigatoken is demanded and does not agree.
    """
    reference = TokenizersEncoder(tokenizer_json)
    if engine == "tokenizers":
        return reference, {"engine": "tokenizers", "reason": "asked for"}
    texts = [*HARD_TEXTS, *_special_token_texts(tokenizer_json), *sample_texts]
    fast, problem = _agreeing(tokenizer_json, reference, texts)
    if fast is not None:
        proof = {"texts": len(texts), "characters": sum(map(len, texts))}
        return fast, {"engine": "gigatoken", "reason": "same ids as tokenizers on a sample", "proof": proof}
    if engine == "gigatoken":
        raise BaseModelError(f"tokenizer: pack.engine is gigatoken but it {problem}; set pack.engine: auto")
    return reference, {"engine": "tokenizers", "reason": f"gigatoken {problem}"}


def _agreeing(tokenizer_json: str, reference: Encoder, texts: Sequence[str]) -> tuple[Encoder | None, str]:
    try:
        fast = GigatokenEncoder(tokenizer_json)
        got = fast.encode_batch(texts)
    except Exception as error:  # a young engine: whatever it raises, the reference still works, and the facts say why
        return None, f"cannot load or run this tokenizer ({str(error).strip().splitlines()[0][:200] or type(error).__name__})"
    expected = reference.encode_batch(texts)
    if np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1]):
        return fast, ""
    differing = next(t for n, t in enumerate(texts) if not np.array_equal(_row(got, n), _row(expected, n)))
    return None, f"gives other ids than tokenizers, for example on {differing[:30]!r}"


def _row(encoded: tuple[Ids, Offsets], n: int) -> Ids:
    ids, offsets = encoded
    return ids[offsets[n] : offsets[n + 1]]


def _special_token_texts(tokenizer_json: str) -> list[str]:
    """The added tokens in a sentence: a corpus about language models spells them out."""
    added = Tokenizer.from_str(tokenizer_json).get_added_tokens_decoder().values()
    return [f"好 {token.content} x{token.content}。" for token in list(added)[:64]]


@contextmanager
def _tokenizers_parallelism(on: bool) -> Iterator[None]:
    """The library reads this variable at each call; what the user set is put back."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if on else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
