"""What becomes of the base's vocabulary: more pieces, special tokens that it lacks, or another tokenizer altogether."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from zhlm.config.section import Positive, Section, Share

Init = Literal["subword_mean", "mean", "mean_noise", "similarity", "random"]
MOST_SENTINELS = 1000
Token = Annotated[str, Field(pattern=r"^\S+$")]
"""The text of a special token."""


class SpecialTokensConfig(Section):
    """Texts by what they are for. A special token that the tokenizer has takes on the role; others get a row, the mean of the old ones."""

    bos_token: Token | None = None
    eos_token: Token | None = None
    unk_token: Token | None = None
    pad_token: Token | None = None
    sep_token: Token | None = None
    cls_token: Token | None = None
    mask_token: Token | None = None
    """What the objective `masked` puts in place of a token."""
    sentinels: Annotated[int, Field(ge=0, le=MOST_SENTINELS)] = 0
    """So many of <extra_id_0>, <extra_id_1> ..., as T5 names them: what `span_corruption` puts in place of spans."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.texts:
            raise ValueError("no special token is named; set one, such as pad_token or sentinels, or special_tokens: null")
        return self

    @property
    def roles(self) -> dict[str, str]:
        """Role -> text, of those that are named."""
        return {name: text for name in type(self).model_fields if name != "sentinels" and (text := getattr(self, name)) is not None}

    @property
    def texts(self) -> list[str]:
        """Every text once, the sentinels last."""
        return list(dict.fromkeys([*self.roles.values(), *(f"<extra_id_{n}>" for n in range(self.sentinels))]))


class VocabConfig(Section):
    add_rows: Annotated[int, Field(ge=0)] = 512
    """At most this many new pieces, learned by continued BPE training on the `new` streams. 0: only those of `word_list` and
    `special_tokens`. Always 0 beside `tokenizer`."""
    min_gain: Share = 1e-6
    """A piece is added while it saves at least this share of the new streams' tokens (as the base has them): with 1e-6, one of a million.
    0: while it saves any. A row costs a 7B model 6e-7 of a step (its width by its parameters), a 0.5B model 2e-6."""
    word_list: str | None = None
    """File with a word per line: each becomes a token of its own, whatever stands around it, beside what is learned."""
    special_tokens: SpecialTokensConfig | None = None
    """Beside what is learned, or alone with `add_rows: 0`."""
    tokenizer: str | None = None
    """Hub name or folder of a tokenizer of your own, which replaces the base's. Rows of tokens that both have are copied to their new
    places, the others are made by `init` from how the base spells them, and the model has no more rows than the tokenizer entries."""
    force: bool = False
    """Extend even where the base reads the `new` streams well (below 0.9 tokens per character, or no letter that takes two): otherwise
    the stage says so and ends."""
    init: Init | Literal["auto"] = "subword_mean"
    """Start of a new row. subword_mean: mean of the old pieces that spelled it. mean: of all old rows. mean_noise: drawn with their mean
    and covariance. similarity: mixed from old pieces with similar neighbours in the corpus. random: as in an untrained model. auto: the
    one with the fewest bits per byte of held-out text."""
    compare_init: bool = False
    """Measure bits per byte at step 0 for each of them, and write the table into vocab/init.json (causal models only)."""
    pad_to_multiple: Positive = 1
    """Rows of the embedding are padded to a multiple of this (64 suits GPUs)."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_learned_beside_a_tokenizer(cls, data: Any) -> Any:
        return {"add_rows": 0, **data} if isinstance(data, Mapping) and data.get("tokenizer") is not None else data

    @property
    def learns(self) -> bool:
        """Whether pieces are learned or words added, by continuing the base's tokenizer."""
        return self.add_rows > 0 or self.word_list is not None

    @model_validator(mode="after")
    def _something_to_add(self) -> Self:
        if not self.learns and self.special_tokens is None and self.tokenizer is None:
            raise ValueError(
                "add_rows is 0 and word_list is null, so nothing would be added; raise the first, name a file or special_tokens, "
                "or set vocab: null"
            )
        if self.tokenizer is not None and self.learns:
            raise ValueError(
                f"tokenizer is {self.tokenizer}, which replaces the base's, with add_rows {self.add_rows} and word_list {self.word_list}; "
                "set tokenizer: null, or add_rows: 0 and word_list: null"
            )
        if self.tokenizer is not None and (self.compare_init or self.init in ("auto", "similarity")):
            raise ValueError(
                f"init is {self.init} and compare_init {self.compare_init} beside tokenizer, where rows start as subword_mean, mean, "
                "mean_noise or random; set init to one of these and compare_init: false"
            )
        return self
