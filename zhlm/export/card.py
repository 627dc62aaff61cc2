"""The model card: the run's facts, for whoever finds the folder without the run."""

from zhlm.checkpoint.state import TrainState
from zhlm.config.load import dump_config
from zhlm.config.schema import RunConfig

TAGS = {"masked": "fill-mask", "span_corruption": "text2text-generation"}
"""What the hub calls the use of a model, by objective."""


def model_card(config: RunConfig, state: TrainState) -> str:
    """README.md of an exported folder."""
    streams = "\n".join(f"| {s.name} | {s.role} | {s.weight:g} | {', '.join(s.paths)} |" for s in config.streams)
    method = f"LoRA r {config.train.lora.r}, embeddings {config.train.embeddings}" if config.train.lora else "all parameters"
    method += ", but for the frozen ones" if config.train.freeze else ""
    seen = f"{state.step} steps, {state.tokens:,} tokens, objective {config.objective.name}"
    return f"""---
base_model: {config.base.model}
library_name: transformers
pipeline_tag: {TAGS.get(config.objective.name, "text-generation")}
---

# {config.name}

`{config.base.model}` after continued pretraining with zhlm: {seen}, {method}.

| stream | role | weight | files |
|---|---|---|---|
{streams}

{_use(config)}

<details><summary>The whole config</summary>

```yaml
{dump_config(config).rstrip()}
```

</details>
"""


def _use(config: RunConfig) -> str:
    if config.objective.name == "masked":
        return (
            'Write the tokenizer\'s mask token where a token is to be filled in: `pipeline("fill-mask", model=FOLDER)`. '
            "The tokenizer puts around a text what stood around each document in training."
        )
    if config.objective.name == "span_corruption":
        return (
            "Write sentinels (`<extra_id_0>`, `<extra_id_1>` ...) where spans are to be filled in; `AutoModelForSeq2SeqLM` generates each "
            "sentinel and what stands for it. The tokenizer puts around a text what stood around each document in training."
        )
    bos = "with the bos token, which the tokenizer adds by itself" if config.pack.document_start == "bos" else "without a bos token"
    return f"Start a prompt {bos}."
