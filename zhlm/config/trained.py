"""Which parts of the base training changes: LoRA beside it, or itself without its frozen parts."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from zhlm.config.section import Pattern, Positive, Section, Share


class LoraConfig(Section):
    r: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Share = 0.0
    targets: Pattern | Annotated[list[str], Field(min_length=1)] = "auto"
    """auto: every linear layer of the transformer blocks. Or endings of their names, such as [q_proj, v_proj]. Or a regular expression
    that matches whole names, such as .*layers.[0-3].mlp.* ; `zhlm model BASE` lists them."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) in place of alpha / r, so that a higher r does not learn less (rsLoRA, Kalajdzievski 2023)."""
    dora: bool = False
    """Train the lengths of the adapted weights apart from their directions (DoRA, Liu et al. 2024): nearer to full training, slower."""
    plus_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the B matrices, as a multiple of that of the A matrices (LoRA+, Hayou et al. 2024; they advise 16)."""
    modules_to_save: list[str] = []
    """Endings of the names of modules to train whole beside LoRA, such as [norm]. Embeddings and head have train.embeddings."""


class FreezeConfig(Section):
    """Parts of the base that full-parameter training leaves as they are."""

    first_layers: Annotated[int, Field(ge=0)] = 0
    """Transformer blocks, counted from the input; of encoder and decoder each."""
    last_layers: Annotated[int, Field(ge=0)] = 0
    """Transformer blocks, counted from the output; of encoder and decoder each."""
    embeddings: bool = False
    """Input embeddings and output head, its bias included."""
    parameters: list[Pattern] = []
    """Regular expressions that match whole parameter names, such as .*norm.* ."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.first_layers or self.last_layers or self.embeddings or self.parameters):
            raise ValueError("nothing is named; set first_layers, last_layers, embeddings or parameters, or freeze: null")
        return self
