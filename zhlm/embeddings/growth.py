"""What an extension costs, before anyone pays it: parameters, memory and step time of the rows that are added. Plain arithmetic."""

from dataclasses import asdict, dataclass

TRAINING_BYTES = 12
"""Of each trained parameter beside weight and gradient: a fp32 copy and AdamW's two fp32 moments. Source: "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models" (Rajbhandari et al., 2020), section 3."""


@dataclass(frozen=True)
class Growth:
    """Of a model whose vocabulary matrices got more rows, padding included."""

    rows: int
    parameters: int
    """Exact: rows x width, twice where the head is not tied to the embedding, and rows more where it has a bias."""
    parameters_share: float
    """Of the parameters before."""
    weight_bytes: int
    """Parameters in the model's own precision."""
    training_bytes: int
    """Weights, gradients in the same precision, and TRAINING_BYTES each, when the rows are trained; unsharded."""
    step_time_share: float
    """More multiplications in a step of as many tokens. The head's grow with its rows, looking up an embedding is free; those of attention
    scores are left out, so for long blocks it is a little less. With frozen layers, which have no weight gradients, up to half more."""
    text_time_share: float
    """The same for a step of as much new text, which has fewer tokens: -0.4 is 40% less time."""

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def growth(
    *,
    parameters: int,
    width: int,
    rows_before: int,
    rows_after: int,
    tied: bool,
    biased: bool = False,
    positions: int = 0,
    value_bytes: int = 4,
    tokens_share: float = 1.0,
) -> Growth:
    """From the sizes of a model before the extension.

    `positions` are the parameters of a learned position embedding, which is looked up like the pieces'. `tokens_share` is the number of
    tokens of the same new text after the extension, as a share of those before.
    """
    rows = rows_after - rows_before
    added = rows * (width * (1 if tied else 2) + biased)
    # Once for each token, norms and biases nearly so; of the vocabulary's matrices only the head, be it the embedding too.
    multiplied = parameters - positions - (0 if tied else rows_before * width)
    step_share = rows * width / multiplied
    return Growth(
        rows=rows,
        parameters=added,
        parameters_share=added / parameters,
        weight_bytes=added * value_bytes,
        training_bytes=added * (2 * value_bytes + TRAINING_BYTES),
        step_time_share=step_share,
        text_time_share=(1 + step_share) * tokens_share - 1,
    )
