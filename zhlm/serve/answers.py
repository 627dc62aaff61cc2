"""Texts of requests through a model: what a replica computes, without Ray and without HTTP's routes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import HTTPException
from transformers import GenerationConfig

from zhlm.inference.fill_mask import Guess, MaskedText, fill, guess_masked, read_masked
from zhlm.inference.write import continue_rows, sampling, write_rows
from zhlm.serve.protocol import Endpoint, FilledText, Guessed, WrittenTexts


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
        # When the last one has stopped waiting, generating ends by itself and the next batch begins.
        left_s = max(0.0, max(q.deadline_s for q in questions) - time.monotonic())
        rule = sampling(self.tokenizer, **request.model_dump(exclude={"input"}), max_time=left_s)
        each, texts = request.num_return_sequences, self._generate([q.ids for q in questions], rule)
        return [WrittenTexts(texts=texts[r * each : (r + 1) * each]) for r in range(len(questions))]

    def _read(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _check_room(self, name: str, ids: Sequence[int], max_new_tokens: int) -> None:
        if self.max_tokens is not None and max_new_tokens > self.max_tokens:
            raise HTTPException(400, f"max_new_tokens is {max_new_tokens}, the limit is {self.max_tokens}; lower it")

    def _generate(self, rows: Sequence[list[int]], rule: GenerationConfig) -> list[str]:
        """As many texts for each row as the rule wants. Sentinels stay: they say which gap is filled by what follows them."""
        ends = {rule.bos_token_id, rule.eos_token_id, rule.pad_token_id}
        kept = ([i for i in row if i not in ends] for row in write_rows(self.model, rows, rule))
        return [str(self.tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in kept]


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

    def _generate(self, rows: Sequence[list[int]], rule: GenerationConfig) -> list[str]:
        return continue_rows(self.model, self.tokenizer, rows, rule, both_ways=True)


def _check_length(name: str, text: str, ids: Sequence[int], max_tokens: int | None) -> None:
    if not text.strip() or not ids:
        raise HTTPException(400, f"{name} is empty; send a text")
    if max_tokens is not None and len(ids) > max_tokens:
        raise HTTPException(400, f"{name} has {len(ids)} tokens, the limit is {max_tokens}; shorten it")
