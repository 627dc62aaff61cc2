"""Texts of requests through a model: what a replica computes, without Ray and without HTTP's routes.

Shape letters: R rows, T tokens of the longest row.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from fastapi import HTTPException
from transformers import GenerationConfig

from zhlm.inference.both_ways import prompts_seen_both_ways
from zhlm.inference.fill_mask import Guess, MaskedText, fill, guess_masked, pad_rows, read_masked
from zhlm.serve.protocol import Endpoint, FilledText, Guessed, WrittenTexts
from zhlm.tokenizer.decode import decode
from zhlm.tokenizer.special import generation_ids


@dataclass(frozen=True)
class Question(MaskedText):
    """One text of a request, as the model reads it, found to fit. Without masks, `spans` is empty."""

    request: Any
    """Its settings: a FillMaskRequest or a TextToTextRequest."""
    deadline_s: float
    """By time.monotonic(); behind it nobody waits for the answer."""


class Answerer(Protocol):
    @property
    def endpoint(self) -> Endpoint:
        """What it is asked."""

    def question(self, name: str, text: str, request: Any, deadline_s: float) -> Question:
        """`name`: what messages call the text. Raises: HTTPException 400 for a text that cannot be answered."""

    def answer(self, questions: Sequence[Question]) -> Sequence[Any]:
        """Answers in the order of the questions, whatever their settings."""


@dataclass(frozen=True)
class FillMask:
    """A masked model."""

    model: Any
    tokenizer: Any
    max_tokens: int | None
    endpoint: Endpoint = "fill-mask"

    def question(self, name: str, text: str, request: Any, deadline_s: float) -> Question:
        read = read_masked(self.tokenizer, text)
        _check_length(name, text, read.ids, self.max_tokens)
        if not read.spans:
            raise HTTPException(400, f"{name} has no mask token; write {self.tokenizer.mask_token} in the place of what is to be guessed")
        return Question(text, read.ids, read.spans, request, deadline_s)

    def answer(self, questions: Sequence[Question]) -> list[FilledText]:
        """One pass for all: the numbers of guesses differ after it only."""
        found = guess_masked(self.model, self.tokenizer, questions, max(q.request.top_k for q in questions))
        return [self._filled(question, masks) for question, masks in zip(questions, found, strict=True)]

    def _filled(self, question: Question, masks: list[list[Guess]]) -> FilledText:
        text = fill(self.tokenizer, question.text, question.spans, [guesses[0].token_id for guesses in masks])
        top_k = question.request.top_k
        return FilledText(text=text, masks=[[Guessed(**vars(guess)) for guess in guesses[:top_k]] for guesses in masks])


@dataclass(frozen=True)
class TextToText:
    """A model with an encoder, which reads the input, and a decoder, which writes."""

    model: Any
    tokenizer: Any
    max_tokens: int | None
    endpoint: Endpoint = "text-to-text"

    def question(self, name: str, text: str, request: Any, deadline_s: float) -> Question:
        ids = self._read(text)
        _check_length(name, text, ids, self.max_tokens)
        self._check_room(name, ids, request.max_new_tokens)
        return Question(text, ids, [], request, deadline_s)

    def answer(self, questions: Sequence[Question]) -> list[WrittenTexts]:
        """Questions with the same settings are generated together."""
        groups: dict[str, list[int]] = {}
        for number, question in enumerate(questions):
            groups.setdefault(question.request.model_dump_json(exclude={"input"}), []).append(number)
        answers: dict[int, WrittenTexts] = {}
        for numbers in groups.values():
            answers |= zip(numbers, self._write([questions[n] for n in numbers]), strict=True)
        return [answers[number] for number in range(len(questions))]

    def _write(self, questions: Sequence[Question]) -> list[WrittenTexts]:
        request = questions[0].request
        sampled, each = request.temperature > 0, request.num_return_sequences
        rule = GenerationConfig(
            max_new_tokens=request.max_new_tokens,
            # When the last one has stopped waiting, generating ends by itself and the next batch begins.
            max_time=max(0.0, max(q.deadline_s for q in questions) - time.monotonic()),
            do_sample=sampled,
            temperature=request.temperature if sampled else 1.0,
            top_p=request.top_p if sampled else 1.0,
            top_k=0 if sampled else None,  # transformers would cut to the 50 likeliest unasked
            num_return_sequences=each,
            **self._ends,
        )
        texts = self._generate([q.ids for q in questions], rule)
        return [WrittenTexts(texts=texts[r * each : (r + 1) * each]) for r in range(len(questions))]

    @property
    def _ends(self) -> dict[str, int | None]:
        ids = generation_ids(self.tokenizer)
        return ids | {"pad_token_id": ids["pad_token_id"] or 0}

    def _read(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _check_room(self, name: str, ids: Sequence[int], max_new_tokens: int) -> None:
        if self.max_tokens is not None and max_new_tokens > self.max_tokens:
            raise HTTPException(400, f"max_new_tokens is {max_new_tokens}, the limit is {self.max_tokens}; lower it")

    @torch.inference_mode()
    def _generate(self, rows: Sequence[list[int]], rule: GenerationConfig) -> list[str]:
        """As many texts for each row as the rule wants. Sentinels stay: they say which gap is filled by what follows them."""
        config = self.model.config
        starts = (self.model.generation_config.decoder_start_token_id, getattr(config, "decoder_start_token_id", None), config.pad_token_id)
        rule.decoder_start_token_id = next(token for token in starts if token is not None)  # what training began with
        ids_RT, mask_RT = (t.to(self.model.device) for t in pad_rows(rows, rule.pad_token_id))
        written_RT = self.model.generate(input_ids=ids_RT, attention_mask=mask_RT, generation_config=rule)
        ends = set(self._ends.values())
        rows = [[i for i in row if i not in ends] for row in written_RT.tolist()]
        return [str(self.tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in rows]


@dataclass(frozen=True)
class Continuation(TextToText):
    """A prefix model, which reads the input in both directions and writes what follows it."""

    start_ids: tuple[int, ...] = ()
    """What stands before each document, as in training."""

    def _read(self, text: str) -> list[int]:
        return [*self.start_ids, *self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

    def _check_room(self, name: str, ids: Sequence[int], max_new_tokens: int) -> None:
        if self.max_tokens is not None and len(ids) + max_new_tokens > self.max_tokens:
            asked = f"{name} has {len(ids)} tokens and max_new_tokens is {max_new_tokens}"
            raise HTTPException(400, f"{asked}, the limit of both is {self.max_tokens}; lower one")

    @torch.inference_mode()
    def _generate(self, rows: Sequence[list[int]], rule: GenerationConfig) -> list[str]:
        ids_RT, mask_RT = (t.to(self.model.device) for t in pad_rows(rows, rule.pad_token_id, left=True))
        with prompts_seen_both_ways(self.model):
            written_RT = self.model.generate(input_ids=ids_RT, attention_mask=mask_RT, generation_config=rule)
        each, new_RT = rule.num_return_sequences, written_RT[:, ids_RT.shape[1] :]
        return [self._continuation(rows[r // each], new_T.tolist()) for r, new_T in enumerate(new_RT)]

    def _continuation(self, prompt_ids: list[int], ids: list[int]) -> str:
        """Decoded together with the prompt, because tokenizers with word marks drop the space at the start of what they decode."""
        whole, head = decode(self.tokenizer, [*prompt_ids, *ids]), decode(self.tokenizer, prompt_ids)
        return whole[len(head) :] if whole.startswith(head) else decode(self.tokenizer, ids)


def _check_length(name: str, text: str, ids: Sequence[int], max_tokens: int | None) -> None:
    if not text.strip() or not ids:
        raise HTTPException(400, f"{name} is empty; send a text")
    if max_tokens is not None and len(ids) > max_tokens:
        raise HTTPException(400, f"{name} has {len(ids)} tokens, the limit is {max_tokens}; shorten it")
