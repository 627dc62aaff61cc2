"""What many tests need: a tiny base model with its tokenizer, and a run whose blocks are packed already."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# Before anything starts Ray or loads a tokenizer: no usage ping, no thread warnings, no look at a hub.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
# As the train stage sets it; some tests start trainers of their own.
os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}

# The same examples in every run, and no deadline on a machine that others use too.
settings.register_profile("zhlm", derandomize=True, deadline=None, database=None)
settings.load_profile("zhlm")

VOCABULARY = 96


def save_tiny_llama(folder: Path, *, tied: bool = True, vocabulary: int = VOCABULARY, positions: int = 64, width: int = 32) -> Path:
    """A random Llama with a byte-level tokenizer of its size."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=positions, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocabulary - 3]
    vocab = {t: i for i, t in enumerate(["<bos>", "<eos>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    return folder


def write_blocks(run_folder: Path, streams: list[str], *, blocks: int = 40, block_tokens: int = 32, vocabulary: int = VOCABULARY) -> None:
    """Packed blocks of random documents, as the pack stage leaves them, with its manifest: three training shards and a held-out one of
    each stream."""
    from zhlm.blocks.store import Ledger, Part, Plan, Planned, Split, beat, commit_part, write_plan, writing
    from zhlm.records import Blocks
    from zhlm.storage import Place, Run

    run, random = Run(Place(run_folder)), np.random.default_rng(5)
    planned: dict[str, tuple[Planned, ...]] = {}
    committed: dict[tuple[str, int], Part] = {}
    facts: dict[str, Any] = {}
    for stream in streams:
        totals = {"train": {"blocks": 0, "tokens": 0}, "validation": {"blocks": 0, "tokens": 0}}
        counts: list[tuple[Split, int]] = [*(("train", blocks // 3 + (n < blocks % 3)) for n in range(3)), ("validation", 5)]
        for number, (split, count) in enumerate(counts):
            first = random.integers(3, vocabulary, (count, 1))
            ids = (first + np.arange(block_tokens)) % (vocabulary - 3) + 3  # counting up: easy to learn
            ends = [np.array(sorted({int(random.integers(4, block_tokens - 4)), block_tokens - b % 3}), np.uint32) for b in range(count)]
            tokens, documents = sum(int(e[-1]) for e in ends), sum(len(e) for e in ends)
            key = hashlib.sha256(repr((streams, stream, number, blocks, block_tokens, vocabulary)).encode()).hexdigest()[:32]
            with writing(run.store, key, [split], block_tokens, vocabulary) as writers:
                writers[split].write(Blocks(ids, ends))
                shard = writers[split].close(documents=documents, tokens=tokens, utf8_bytes=2 * tokens, characters=tokens)
            part = Part(key, f"{stream}-{number}", {split: shard}, documents)
            commit_part(run.store, part)
            planned[stream] = (*planned.get(stream, ()), Planned(key, part.source, (split,)))
            committed[stream, number] = part
            totals[split] = {"blocks": totals[split]["blocks"] + count, "tokens": totals[split]["tokens"] + tokens}
        facts[stream] = totals
    write_plan(run.blocks, Plan({"block_tokens": block_tokens, "vocabulary": vocabulary}, planned))
    Ledger(run.blocks).start(committed)
    beat(run.blocks, "done")
    (run.blocks / "manifest.json").write_text(json.dumps({"key": "test", "facts": {"streams": facts}}))


def run_data(folder: Path, **train: Any) -> dict[str, Any]:
    """The plain data of a small valid config whose base is at folder/base and whose runs are at folder/runs."""
    return {
        "name": "tiny",
        "storage": {"root": str(folder / "runs")},
        "base": {"model": str(folder / "base")},
        "streams": [
            {"name": "zh", "paths": [str(folder / "zh.txt")], "role": "new", "weight": 0.75},
            {"name": "en", "paths": [str(folder / "en.txt")], "role": "old", "weight": 0.25},
        ],
        "pack": {"block_tokens": 32},
        "train": {
            "steps": 8, "global_batch_blocks": 6, "micro_batch_blocks": 2, "learning_rate": 1e-2, "log_every": 1, "validate_every": 4,
            "checkpoint_every": 4, "validation_blocks": 4, "lora": {"r": 4, "dropout": 0.1}, **train,
        },
        "resources": {"workers": 2, "max_failures": 2},
    }  # fmt: skip


@pytest.fixture(scope="session")
def ray_local(s3_server: str) -> Iterator[dict[str, str]]:
    """One local Ray for all tests of a session, whose workers find the S3. What a command needs in its environment to join it."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_account(s3_server).items():
            patch.setenv(name, value)
        context = ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield {"RAY_ADDRESS": context.address_info["gcs_address"], "RAY_AUTH_MODE": "token"}
    ray.shutdown()


@pytest.fixture
def one_process() -> Iterator[None]:
    """torch.distributed with this process as its only rank."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def s3_account(address: str) -> dict[str, str]:
    """What a process needs in its environment to use the S3 at this address."""
    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return account | {"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 that moto plays on the loopback interface."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
