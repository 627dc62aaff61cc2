"""Token blocks and a base model in, checkpoints and metrics.jsonl out: Ray Train starts the workers, DeepSpeed shards their state."""
