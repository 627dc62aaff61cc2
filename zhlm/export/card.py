"""The model card: the run's facts, for whoever finds the folder without the run."""

from zhlm.checkpoint.state import TrainState
from zhlm.config.load import dump_config
from zhlm.config.schema import RunConfig


def model_card(config: RunConfig, state: TrainState) -> str:
    """README.md of an exported folder."""
    streams = "\n".join(f"| {s.name} | {s.role} | {s.weight:g} | {', '.join(s.paths)} |" for s in config.streams)
    method = f"LoRA r {config.train.lora.r}, embeddings {config.train.embeddings}" if config.train.lora else "all parameters"
    method += ", but for the frozen ones" if config.train.freeze else ""
    return f"""---
base_model: {config.base.model}
library_name: transformers
---

# {config.name}

`{config.base.model}` after continued pretraining with zhlm: {state.step} steps, {state.tokens:,} tokens, {method}.

| stream | role | weight | files |
|---|---|---|---|
{streams}

Start a prompt {"with the bos token, which the tokenizer adds by itself" if config.pack.document_start == "bos" else "without a bos token"}.

<details><summary>The whole config</summary>

```yaml
{dump_config(config).rstrip()}
```

</details>
"""
