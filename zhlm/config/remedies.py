"""What a user can lower when memory does not suffice, most useful first, by what the config has not lowered yet."""

from zhlm.config.schema import RunConfig


def memory_remedies(config: RunConfig, workers: int) -> str:
    """As a list of settings for the end of a message: `lower train.micro_batch_blocks (4), ..., or use larger machines`."""
    train = config.train
    open_ones = {
        f"lower train.micro_batch_blocks ({train.micro_batch_blocks})": train.micro_batch_blocks > 1,
        "set train.gradient_checkpointing: true": not train.gradient_checkpointing,
        "set train.precision: bfloat16": train.precision == "float32",
        "set train.zero_stage: 3": train.zero_stage < 3 and workers > 1,
        "set train.offload: optimizer": train.offload == "none" and config.resources.gpus_per_worker > 0,
        "train with train.lora": train.lora is None,
        f"lower pack.block_tokens ({config.pack.block_tokens})": True,
    }
    return ", ".join(text for text, is_open in open_ones.items() if is_open) + ", or use larger machines"
