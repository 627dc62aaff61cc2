"""The vocab stage on Ray: count pre-tokens file by file, learn, extend, resize, prove file by file, write. `zhlm vocab` runs the same.

Where nothing is learned, special tokens are added (special.py) or the tokenizer is replaced (replace.py).
"""

import json
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zhlm.cluster import connected
from zhlm.config.schema import RunConfig
from zhlm.config.vocabulary import VocabConfig
from zhlm.corpus.streams import files_of
from zhlm.embeddings.compare import check_causal
from zhlm.embeddings.grow import Extension, grow, growth_of, held_out
from zhlm.embeddings.special import name_special_tokens
from zhlm.errors import AdviceError, ConfigError, CorpusError, DeadlineError, ZhlmError
from zhlm.model.load import check_base
from zhlm.pieces import worth
from zhlm.pieces.base import Base
from zhlm.pieces.count import LEARN_CHARS, CountTask, FileCount, count_file, plan_counts
from zhlm.pieces.extend import first_new_id
from zhlm.pieces.gain import curve_facts
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned, learn
from zhlm.pieces.reach import extend_reachable
from zhlm.pieces.words import WithWords, cut_words, read_words
from zhlm.records import Progress, Report
from zhlm.storage import Place, Run, is_remote, storage_errors
from zhlm.tokenizer.encode import HARD_TEXTS, TokenizersEncoder
from zhlm.tokenizer.load import digest_of, load_tokenizer, tokenizer_json
from zhlm.tokenizer.special import Special, add_special_tokens
from zhlm.vocab.order import Order, save, size_of
from zhlm.vocab.readings import Readings
from zhlm.vocab.replace import replace_tokenizer
from zhlm.vocab.special import add_special
from zhlm.vocab.verify import Claim, Proof, conclude, prove_file

FILE_TIMEOUT_S = 3600
"""Wait for the next file to be counted or proved, the start of a node included. One that cannot be cut, a compressed one, may alone have
all of LEARN_CHARS: 10 minutes of a core."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Opened:
    """The base, found to be fit for an extension."""

    tokenizer: PreTrainedTokenizerFast
    base: Base
    first_id: int
    words: list[str]
    model: PreTrainedModel


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Extend the base's vocabulary on the streams of role `new`, or replace its tokenizer, and write tokenizer and resized model into the
    run's vocab folder."""
    assert config.vocab is not None, "the vocab stage runs only where the config has a vocab section"
    run = Run.of(config)
    order = Order(
        run.original_model(config),
        config.base.revision,
        config.streams,
        run.resolve,
        _with_local_tokenizer(config.vocab),
        run.vocab,
        config.resources.pack_tasks,
        config.seed if config.base.from_scratch else None,
        config.train.embeddings == "new_rows",
    )
    return extend_base(order, report) | {"base": config.base.model, "base_revision": config.base.revision}


def _with_local_tokenizer(vocab: VocabConfig) -> VocabConfig:
    """What is in a remote store is fetched."""
    if vocab.tokenizer is None or not is_remote(vocab.tokenizer):
        return vocab
    return vocab.model_copy(update={"tokenizer": str(Place(vocab.tokenizer).on_disk())})


def extend_base(order: Order, report: Report) -> dict[str, Any]:
    """Extend a base or replace its tokenizer, prove it and write it. Returns the facts; nothing is written before all of it is proved.

    Raises: AdviceError or CorpusError where the base needs no more pieces for this text and `vocab.force` is not set; other UserErrors for
        a base, a tokenizer or a word list that cannot be used, and a corpus that cannot be learned from; VerificationError when the proof
        fails.
    """
    if order.vocab.tokenizer is not None:
        return replace_tokenizer(order, report)
    if not order.vocab.learns:
        return add_special(order, report)
    opened = _open(order)
    with connected():
        tasks = plan_counts(order.streams, {stream.name: files_of(stream, order.resolve) for stream in order.streams})
        return _extend(order, opened, tasks, report)


def _extend(order: Order, opened: _Opened, tasks: Sequence[CountTask], report: Report) -> dict[str, Any]:
    vocab, new = order.vocab, order.new
    tokenizer, base, words, model = opened.tokenizer, opened.base, opened.words, opened.model
    counts = _by_stream(
        order, tasks, _per_file(count_file, tasks, tokenizer_json(tokenizer), order.tasks, _Shown(report, "files", "counted"))
    )
    samples = {name: [text for count in of_stream for text in count.sample] for name, of_stream in counts.items()}
    before = worth.per_character(TokenizersEncoder(tokenizer_json(tokenizer)), samples)
    advice = _worth(order, opened, samples, before)
    proposed, num_pre_tokens = _learn(order, opened, counts, report)
    met = sorted({word for of_stream in counts.values() for count in of_stream for word in count.words})
    extended, learned = extend_reachable(tokenizer, base, proposed, met, words)
    special = add_special_tokens(extended, vocab.special_tokens) if vocab.special_tokens else Special({}, [], {})
    size_before = size_of(model)
    speller = WithWords(base, frozenset(words), frozenset(special.new))
    extension = Extension(tokenizer, extended, [*learned.pieces, *words, *special.new], opened.first_id, speller)
    started, comparison = grow(model, extension, vocab, *held_out(order.streams, order.resolve, samples))
    if vocab.special_tokens:
        name_special_tokens(model, extended, vocab.special_tokens.roles)
    with order.out.staged() as out:
        save(extended, model, out)
        extended = load_tokenizer(str(out))
        claim = Claim(tokenizer_json(tokenizer), extended, learned, opened.first_id, tuple(words), special.marked)
        proof = _prove(order, tasks, claim, report)
        with storage_errors("writing", out):
            (out / "verify.json").write_text(json.dumps(proof.as_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
            if comparison is not None:
                (out / "init.json").write_text(json.dumps(comparison.as_dict(), indent=1), encoding="utf-8")
    after = worth.per_character(TokenizersEncoder(tokenizer_json(extended)), samples)
    facts = _facts(
        vocab, proof, size_before, size_of(model), {name: {"before": before[name], "after": after[name]} for name in samples}, new
    )
    facts |= {"kind": base.KIND, "dropped": len(proposed.pieces) - len(learned.pieces), "tokenizer_digest": digest_of(extended)}
    facts |= {"passed_over": {"doubled": learned.num_doubled, "crossing": learned.num_crossing}, **special.facts()}
    learned_from = _learned_from([c for name in new for c in counts[name]], num_pre_tokens)
    facts |= {"learned_from": learned_from} | curve_facts(proposed, learned, learned_from["characters"], vocab.add_rows)
    share = sum(after[name] for name in new) / (sum(before[name] for name in new) or 1.0)
    facts |= started | {"growth": growth_of(model, size_before[0], share).as_dict()}
    return facts | ({"advice": advice} if advice else {}) | ({"inits": comparison.as_dict()} if comparison else {})


def _open(order: Order) -> _Opened:
    """All that can be refused before any text is read."""
    folder = order.folder()
    tokenizer = load_tokenizer(folder)
    first_id = first_new_id(tokenizer)
    check_base(folder, None, first_id)
    base = take_apart(tokenizer.backend_tokenizer)
    words = read_words(order.vocab.word_list, tokenizer, base) if order.vocab.word_list else []
    model = order.model(folder)
    if order.vocab.compare_init or order.vocab.init == "auto":
        check_causal(model)
    return _Opened(tokenizer, base, first_id, words, model)


@dataclass(frozen=True)
class _Shown:
    """What the person is told of work file by file."""

    report: Report
    unit: str
    done: str
    """What happens to a file."""


def _per_file(work: Callable[[CountTask, Any], T], tasks: Sequence[CountTask], shared: Any, at_once: int, shown: _Shown) -> list[T]:
    """Do the work on every piece of a file, one Ray task each, a few at a time. The results, in the order of the tasks.

    Raises: DeadlineError; the first error of a task.
    """
    everywhere = ray.put(shared)
    remote = ray.remote(num_cpus=1)(work)
    waiting = list(enumerate(tasks))
    running: dict[ray.ObjectRef, int] = {}
    done: dict[int, T] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number, task = waiting.pop(0)
            running[remote.remote(task, everywhere)] = number
        ready, _ = ray.wait(list(running), timeout=FILE_TIMEOUT_S)
        if not ready:
            raise DeadlineError(
                f"vocab: no corpus file was {shown.done} for {FILE_TIMEOUT_S} s; {len(running)} tasks wait for a free CPU or hang"
            )
        try:
            done[running.pop(ready[0])] = ray.get(ready[0], timeout=FILE_TIMEOUT_S)
        except RayTaskError as error:
            if isinstance(error.cause, ZhlmError):  # the message of the other one is the whole traceback
                raise error.cause from error
            raise
        shown.report(Progress("vocab", len(done), len(tasks), shown.unit))
    return [done[number] for number in range(len(tasks))]


def _by_stream(order: Order, tasks: Sequence[CountTask], found: Sequence[T]) -> dict[str, list[T]]:
    by_stream: dict[str, list[T]] = {stream.name: [] for stream in order.streams}
    for task, of_task in zip(tasks, found, strict=True):
        by_stream[task.stream].append(of_task)
    return by_stream


def _worth(order: Order, opened: _Opened, samples: Mapping[str, Sequence[str]], before: Mapping[str, float]) -> str | None:
    """What speaks against an extension, if anything does. Raises: AdviceError or CorpusError, where `vocab.force` is not set."""
    texts = [text for name in order.new for text in samples[name]]
    ids_I, _ = TokenizersEncoder(tokenizer_json(opened.tokenizer)).encode_batch(texts)
    advice = worth.advice({name: before[name] for name in order.new}, worth.unknown_share(opened.base, ids_I))
    if not order.vocab.force:
        worth.check_script(opened.base, texts, order.new)
        if advice:
            raise AdviceError(f"vocab: nothing was extended: {advice}; to do it nevertheless, set {worth.FORCE}")
    return advice


def _learn(order: Order, opened: _Opened, counts: Mapping[str, list[FileCount]], report: Report) -> tuple[Learned, int]:
    """The pieces, and the number of different pre-tokens, whose memory is free again then."""
    pre_tokens, vocab = _merged(counts, order.new), order.vocab
    num_pre_tokens = len(pre_tokens)
    pre_tokens = cut_words(pre_tokens, opened.base, opened.words) if opened.words else pre_tokens
    proposed = learn(
        pre_tokens,
        opened.base,
        vocab.add_rows,
        lambda done: report(Progress("vocab", done, vocab.add_rows, "rows")),
        min_gain=vocab.min_gain,
    )
    _check_limit(vocab, proposed)
    return proposed, num_pre_tokens


def _prove(order: Order, tasks: Sequence[CountTask], claim: Claim, report: Report) -> Proof:
    """The hard texts here, as the first to fail, then what was learned from and as much old text, file by file."""
    hard = claim.reader().read(HARD_TEXTS)
    read = _by_stream(
        order, tasks, _per_file(prove_file, tasks, pickle.dumps(claim), order.tasks, _Shown(report, "files proved", "proved"))
    )
    new, old = Readings(), Readings()
    for name, of_stream in read.items():
        for of_file in of_stream:
            (new if name in order.new else old).add(of_file)
    return conclude(claim, hard, new, old)


def _merged(counts: Mapping[str, list[FileCount]], names: Sequence[str]) -> Counter[str]:
    total: Counter[str] = Counter()
    for name in names:
        for count in counts[name]:
            total.update(count.pre_tokens)
            count.pre_tokens.clear()  # they may be gigabytes
    if not total:
        raise CorpusError(
            f"vocab: the streams of role new ({', '.join(names)}) hold no text to learn pieces from; check their paths and field"
        )
    return total


def _check_limit(vocab: VocabConfig, proposed: Learned) -> None:
    there = len(proposed.pieces)
    if proposed.beyond and not there:
        raise ConfigError(
            f"vocab: no piece saves min_gain {vocab.min_gain:g} of the new streams' tokens, the first one saves "
            f"{proposed.beyond[0] / proposed.num_tokens:.2g}; lower vocab.min_gain"
        )
    if there < vocab.add_rows and not proposed.beyond:
        raise ConfigError(
            f"vocab: add_rows is {vocab.add_rows:,}, but the new streams give only {there:,} pieces that occur twice; "
            f"set vocab.add_rows (--rows) to {there} or less, or give more text"
        )


def _facts(
    vocab: VocabConfig,
    proof: Proof,
    size_before: tuple[int, int],
    size_after: tuple[int, int],
    fertility: Mapping[str, Mapping[str, float]],
    new: Sequence[str],
) -> dict[str, Any]:
    special = f", {proof.special} special tokens" if proof.special else ""
    return {
        "summary": f"{proof.new_pieces} rows added, {proof.reachable} reachable{special}; tokens per character of {new[0]}: "
        f"{fertility[new[0]]['before']:.2f} -> {fertility[new[0]]['after']:.2f}",
        "rows_before": size_before[0],
        "rows_after": size_after[0],
        "asked": vocab.add_rows,
        "added": proof.new_pieces + proof.special,
        "words": proof.words,
        "reachable": proof.reachable,
        "on_corpus": proof.on_corpus,
        "proved": {"texts": proof.texts, "characters": proof.characters, "engine": proof.engine["engine"]},
        "unknown_share": proof.unknown_share,
        "parameters_before": size_before[1],
        "parameters_after": size_after[1],
        "parameter_growth_share": size_after[1] / size_before[1] - 1,
        "tokens_per_character": fertility,
        "old_tokens_new_share": proof.old_tokens_new_share,
    }


def _learned_from(counts: Sequence[FileCount], num_pre_tokens: int) -> dict[str, int]:
    return {
        "documents": sum(c.documents for c in counts),
        "characters": sum(c.characters for c in counts),
        "characters_limit": LEARN_CHARS,
        "different_pre_tokens": num_pre_tokens,
        "dropped_pre_tokens": sum(c.dropped for c in counts),
    }
