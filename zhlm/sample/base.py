"""A tiny base model from scratch: a byte-level BPE tokenizer and a Llama, trained on a corpus for a minute or so.

Shape letters: R rows, T tokens of a row.
"""

import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zhlm.config.schema import ScratchBaseConfig
from zhlm.errors import CorpusError
from zhlm.records import Progress, Report

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
NOT_A_LABEL = -100
OPEN_ROWS = 64
"""Rows that packing fills at the same time; on the sample, whose stories are about 100 tokens, rows of 256 end up 0.87 full."""
HELD_OUT_SHARE = 0.02
MAX_HELD_OUT_DOCUMENTS = 200
WARMUP_SHARE = 0.05
FINAL_RATE_SHARE = 0.05
MAX_GRAD_NORM = 1.0
WEIGHT_DECAY = 0.1
REPORT_EVERY_STEPS = 5

Ids = npt.NDArray[np.int64]


def train_base(texts: Sequence[str], config: ScratchBaseConfig, folder: Path, *, seed: int, report: Report) -> dict[str, Any]:
    """Train tokenizer and model on these documents and save both into a folder that Hugging Face loads; the facts of the training."""
    started = time.monotonic()
    if not texts:
        raise CorpusError(f"sample: sample.base.paths {config.paths} hold no document; name files with text")
    # Inside a Ray job the environment says one thread.
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    shuffled = random.Random(seed).sample(texts, len(texts))
    num_held_out = min(MAX_HELD_OUT_DOCUMENTS, int(len(texts) * HELD_OUT_SHARE))
    held_out, training = shuffled[:num_held_out], shuffled[num_held_out:]
    tokenizer = train_tokenizer(training, config.vocabulary, config.positions)
    model = new_model(tokenizer, config, seed)
    loss_nats = _train(model, pack_rows(encode(tokenizer, training), config.block_tokens), config, report)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return {
        "documents": len(texts),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "final_loss_nats": round(loss_nats, 4),
        "held_out_bits_per_byte": round(
            bits_per_byte(model, tokenizer, held_out or training[:MAX_HELD_OUT_DOCUMENTS], config.block_tokens), 4
        ),
        "seconds": round(time.monotonic() - started, 1),
    }


def train_tokenizer(texts: Sequence[str], vocabulary: int, positions: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that can spell any text; like Llama's, it puts the start token before what a user types."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, config: ScratchBaseConfig, seed: int) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=_round_up(config.width * 8 // 3, 32),
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Ids]:
    """Every document as start token, text, end token."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array([tokenizer.bos_token_id, *e.ids, tokenizer.eos_token_id]) for e in encodings]


def pack_rows(documents: Sequence[Ids], row_tokens: int) -> list[list[Ids]]:
    """Rows of whole documents, best fit; a document longer than a row is cut into windows first."""
    windows = (d[i : i + row_tokens] for d in documents for i in range(0, len(d), row_tokens))
    rows: list[list[Ids]] = []
    open_rows: list[tuple[int, list[Ids]]] = []
    for window in windows:
        fits = [i for i, (room, _) in enumerate(open_rows) if room >= len(window)]
        if fits:
            room, row = open_rows.pop(min(fits, key=lambda i: open_rows[i][0]))
        else:
            room, row = row_tokens, []
            rows.append(row)
        row.append(window)
        open_rows.append((room - len(window), row))
        if len(open_rows) > OPEN_ROWS:
            open_rows.remove(min(open_rows, key=lambda o: o[0]))
    return rows


def batch_of(rows: Sequence[Sequence[Ids]], row_tokens: int) -> dict[str, torch.Tensor]:
    """Model inputs: positions restart with each document, which alone keeps documents apart (no attention mask may be passed)."""
    ids_RT = np.zeros((len(rows), row_tokens), np.int64)
    positions_RT = np.tile(np.arange(row_tokens), (len(rows), 1))
    labels_RT = np.full((len(rows), row_tokens), NOT_A_LABEL)
    for r, row in enumerate(rows):
        start = 0
        for document in row:
            end = start + len(document)
            ids_RT[r, start:end] = document
            positions_RT[r, start:end] = np.arange(len(document))
            labels_RT[r, start + 1 : end] = document[1:]
            start = end
        positions_RT[r, start:] = np.arange(row_tokens - start)
    return {"input_ids": torch.from_numpy(ids_RT), "position_ids": torch.from_numpy(positions_RT), "labels": torch.from_numpy(labels_RT)}


def _loss_sum(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Sum of the label tokens' losses in nats, and their number."""
    hidden = model.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).last_hidden_state
    labels = batch["labels"][:, 1:]
    wanted = labels != NOT_A_LABEL
    loss = cross_entropy(model.lm_head(hidden[:, :-1][wanted]), labels[wanted], reduction="sum")
    return loss, int(wanted.sum())


def _train(model: LlamaForCausalLM, rows: list[list[Ids]], config: ScratchBaseConfig, report: Report) -> float:
    """Train over shuffled rows, as many epochs as the steps need; the mean loss of the last tenth of the steps, in nats."""
    embedding = model.get_input_embeddings().weight
    unseen = _unseen(rows, len(embedding))
    optimizers = _optimizers(model, config.learning_rate)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_share(step, config.steps)) for o in optimizers]
    batches = _batches(rows, max(1, config.batch_tokens // config.block_tokens), random.Random(0))
    losses: list[float] = []
    model.train()
    for step in range(1, config.steps + 1):
        total, count = _loss_sum(model, batch_of(next(batches), config.block_tokens))
        loss = total / max(count, 1)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        embedding.grad[unseen] = 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        losses.append(float(loss.detach()))
        if step % REPORT_EVERY_STEPS == 0 or step == config.steps:
            report(Progress("sample", step, config.steps, "steps", {"loss": round(losses[-1], 3)}))
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def _unseen(rows: list[list[Ids]], vocabulary: int) -> torch.Tensor:
    """Ids that never occur: the bytes of other scripts, mostly.

    Their rows stay as they were drawn. Adam would push them all the same way (cosine 0.97 between them, measured), and new pieces,
    which start as means of such bytes, would all start alike.
    """
    seen = np.zeros(vocabulary, bool)
    for row in rows:
        for document in row:
            seen[document] = True
    return torch.from_numpy(~seen)


def _optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms.

    Measured on the sample, one minute on 2 cores: 1.17 times the entropy of English, against 1.37 with AdamW alone, which had not learned
    to copy a name from an earlier sentence.
    """
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and not n.endswith("embed_tokens.weight")]
    outer = [p for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("embed_tokens.weight")]
    # match_rms_adamw scales the updates so that one learning rate serves both.
    muon = torch.optim.Muon(inner, lr=learning_rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def _batches(rows: list[list[Ids]], batch_rows: int, rng: random.Random) -> Iterator[list[list[Ids]]]:
    """Batches without end; each epoch in an order of its own."""
    waiting: list[list[Ids]] = []
    while True:
        waiting += rng.sample(rows, len(rows))
        while len(waiting) >= batch_rows:
            yield waiting[:batch_rows]
            del waiting[:batch_rows]


def rate_share(step: int, steps: int) -> float:
    """Share of the learning rate at a step (from 0): linear warm-up, then a cosine."""
    warmup_steps = max(1, round(steps * WARMUP_SHARE))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * (1 + math.cos(math.pi * progress)) / 2


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], block_tokens: int) -> float:
    """Mean code length of these documents, their ends included, per byte of UTF-8."""
    model.eval()
    rows = pack_rows(encode(tokenizer, texts), block_tokens)
    nats = sum(float(_loss_sum(model, batch_of(rows[i : i + 8], block_tokens))[0]) for i in range(0, len(rows), 8))
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)
