"""What a model makes of a prompt, and how the base and the adapted model answer the same one: causal and prefix models continue it, masked
ones guess its masks, sequence-to-sequence ones fill its sentinels or write a text to it."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from zhlm.config.prompts import check_masks
from zhlm.config.schema import GenerateConfig, RunConfig
from zhlm.errors import RunError
from zhlm.evaluate.columns import side_by_side
from zhlm.evaluate.measure import continues
from zhlm.evaluate.models import best_device, both_models, load, merged_model, open_run
from zhlm.inference.bits import special_ids
from zhlm.inference.fill_mask import Guess, guess_masked, read_masked
from zhlm.inference.write import continue_rows, sampling, write_rows
from zhlm.model.load import model_positions
from zhlm.objectives.span_corruption import sentinel_ids
from zhlm.tokenizer.decode import decode
from zhlm.tokenizer.load import load_tokenizer

GUESSES = 5
"""For each mask."""
SENTINEL = re.compile(r"<extra_id_(\d+)>")


@dataclass(frozen=True)
class Answer:
    texts: list[str]
    """As many as asked for: what follows the prompt, or the prompt with its sentinels filled. Of a masked model: its guesses."""
    guesses: list[list[Guess]] = field(default_factory=list)
    """Of a masked model: for each mask, the best first."""


def answer(config: RunConfig, model: Any, tokenizer: Any, prompt: str, settings: GenerateConfig, num_return_sequences: int = 1) -> Answer:
    """What a model of the run's objective makes of the prompt. Raises: RunError for a prompt that is empty, too long, or has no mask."""
    if config.objective.name == "masked":
        check_masks(config, [prompt], tokenizer.mask_token)
        guesses = guess_masks(model, tokenizer, prompt)
        return Answer([_in_words(guesses)], guesses)
    if config.objective.name == "span_corruption":
        return Answer(write(model, tokenizer, prompt, settings, num_return_sequences))
    start, prefix = config.pack.document_start, config.objective.name == "prefix"
    return Answer(generate(model, tokenizer, prompt, settings, num_return_sequences, document_start=start, prefix=prefix))


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    settings: GenerateConfig,
    num_return_sequences: int = 1,
    *,
    document_start: str = "none",
    prefix: bool = False,
) -> list[str]:
    """The texts that follow the prompt, without it; the same seed gives the same texts. Greedy ones (temperature 0) are all alike.

    `prefix`: the model sees the prompt in both directions. Raises: RunError for a prompt that is empty or leaves no room.
    """
    ids = [*special_ids(tokenizer, document_start), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise RunError("generate: the prompt is empty and the run has no bos to start from; give a prompt of at least one character")
    rule = _rule(tokenizer, settings, min(settings.max_new_tokens, _room(model, ids)), num_return_sequences)
    with _seeded(model, settings.seed):
        texts = continue_rows(model, tokenizer, [ids], rule, both_ways=prefix)
    return texts if rule.do_sample else texts * num_return_sequences


def write(model: Any, tokenizer: Any, prompt: str, settings: GenerateConfig, num_return_sequences: int = 1) -> list[str]:
    """What a sequence-to-sequence model writes: the prompt with each of its sentinels (<extra_id_0> ...) replaced, if it has any. One that
    the model does not fill stays.

    Raises: RunError for an empty prompt.
    """
    if not prompt.strip():
        raise RunError("generate: the prompt is empty; give a text, or one with <extra_id_0> where something is to be filled in")
    sentinels = sentinel_ids(tokenizer)
    asked = [int(n) for n in SENTINEL.findall(prompt) if int(n) < len(sentinels)]
    rule = _rule(tokenizer, settings, settings.max_new_tokens, num_return_sequences)
    if asked and max(asked) + 1 < len(sentinels):  # which the model writes behind the last span
        rule.eos_token_id = [i for i in (rule.eos_token_id, sentinels[max(asked) + 1]) if i is not None]
    with _seeded(model, settings.seed):
        rows = write_rows(model, [tokenizer(prompt, verbose=False)["input_ids"]], rule)
    texts = [_filled(tokenizer, prompt, row, sentinels) if asked else decode(tokenizer, row) for row in rows]
    return texts if rule.do_sample else texts * num_return_sequences


def guess_masks(model: Any, tokenizer: Any, prompt: str) -> list[list[Guess]]:
    """The likeliest tokens for each mask of the prompt, the other masks as they are. Raises: RunError for a prompt that is too long."""
    read = read_masked(tokenizer, prompt)
    _room(model, read.ids, least=0)
    return guess_masked(model, tokenizer, [read], GUESSES)[0]


def _in_words(guesses: Sequence[Sequence[Guess]]) -> str:
    lines: list[str] = []
    for number, mask in enumerate(guesses, start=1):
        lines += [f"mask {number}"] * (len(guesses) > 1) + [f"{guess.token.strip()} {guess.score:.3f}" for guess in mask]
    return "\n".join(lines)


def _rule(tokenizer: Any, settings: GenerateConfig, max_new_tokens: int, num_return_sequences: int) -> GenerationConfig:
    return sampling(
        tokenizer,
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        num_return_sequences=num_return_sequences,
    )


@contextmanager
def _seeded(model: Any, seed: int) -> Iterator[None]:
    """The global randomness is left as it was."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _room(model: Any, ids: Sequence[int], least: int = 1) -> int:
    """Tokens that can be added. Raises: RunError where that is less than the least."""
    positions = model_positions(model)
    if positions is None:
        return 1 << 30
    if len(ids) + least > positions:
        raise RunError(f"generate: the prompt has {len(ids)} tokens and the model {positions} positions; shorten the prompt")
    return positions - len(ids)


def _filled(tokenizer: Any, prompt: str, ids: Sequence[int], sentinels: Sequence[int]) -> str:
    """`a <extra_id_0> c` with the ids of `<extra_id_0> b <extra_id_1>` is `a b c`."""
    numbers, spans, current = {token: number for number, token in enumerate(sentinels)}, dict[int, list[int]](), -1
    for token in ids:
        if token in numbers:
            current = numbers[token]
            spans[current] = []
        elif current >= 0:
            spans[current].append(token)
    return SENTINEL.sub(lambda found: decode(tokenizer, spans[n]).strip() if (n := int(found[1])) in spans else found[0], prompt)


def run_generate(
    run_folder: str, prompts: Sequence[str], *, top_p: float, temperature: float, num_return_sequences: int, max_new_tokens: int, seed: int
) -> str:
    """The answers of the base and of the adapted model to each prompt, as text for a terminal."""
    run, config = open_run(run_folder)
    check_masks(config, prompts, str(load_tokenizer(merged_model(run)).mask_token))
    disable_progress_bar()  # of loading: it would stand in the text
    settings = GenerateConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    written: dict[str, list[Answer]] = {}
    for name, (source, revision, seed_of_base) in both_models(config, run).items():
        model, tokenizer = load(source, best_device(), revision, seed_of_base)
        written[name] = [answer(config, model, tokenizer, p, settings, num_return_sequences) for p in prompts]
    width = min(shutil.get_terminal_size((100, 24)).columns, 160)
    lines: list[str] = []
    for prompt, base, adapted in zip(prompts, written["base"], written["adapted"], strict=True):
        lines += [f"> {prompt}", ""]
        head = prompt if continues(config) else ""
        for texts in zip(base.texts, adapted.texts, strict=True):
            lines += [*side_by_side(dict(zip(("base", "adapted"), (head + text for text in texts), strict=True)), width), ""]
    return "\n".join(lines).rstrip("\n")
