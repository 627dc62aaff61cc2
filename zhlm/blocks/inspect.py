"""What `zhlm blocks` shows of a run: its streams and their shards, the order of training, a block as text."""

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from zhlm.blocks.leftovers import remove_leftovers
from zhlm.blocks.order import NotPacked
from zhlm.blocks.read import BlockReader, training_reader
from zhlm.blocks.store import SPLITS, Ledger, Part, Plan, Shard, bytes_of, read_plan
from zhlm.blocks.verify import bad_shards, of_plan, repair
from zhlm.config.load import load_config
from zhlm.config.objective import BY_NAME
from zhlm.config.schema import RunConfig
from zhlm.corpus.changes import changed_since
from zhlm.errors import RunError
from zhlm.storage import MANIFEST, STARTED, Run

ORDER_LINES = 20
MIX_BLOCKS = 1000
FILE_NAMES = 5
COLOURS = ("cyan", "green", "yellow", "magenta")
"""Of the documents in a block, in turn."""


@dataclass(frozen=True)
class Opened:
    """A run whose blocks are looked at; a packer may be at work on it."""

    run: Run
    config: RunConfig
    plan: Plan

    @property
    def vocabulary(self) -> int | None:
        found: int | None = self.plan.recipe.get("vocabulary")
        return found

    def parts(self) -> dict[tuple[str, int], Part]:
        """What is packed. Raises: RunError for a broken ledger."""
        return of_plan(self.plan, Ledger(self.run.blocks).read())

    def changed_files(self) -> list[str]:
        """The local corpus files that are no longer what was packed, a few words on each; none where the packer kept no list of them."""
        names = (self.run.blocks / name for name in (MANIFEST, STARTED))
        manifest: dict[str, Any] = next((json.loads(place.read_text()) for place in names if place.exists()), {})
        documents = {s.name: s.document for s in self.config.streams}
        return [
            f"{name}: {change}"
            for name, listing in manifest.get("sources", {}).items()
            for change in changed_since(listing, documents.get(name.removesuffix(".held_out"), "line"))
        ]

    @contextmanager
    def asking(self, what: str) -> Iterator[BlockReader]:
        """A reader of the training order that does not wait. Raises: RunError for what is not packed yet."""
        try:
            yield training_reader(self.run, self.config, wait=False)
        except NotPacked as missing:
            raise RunError(f"blocks: {what} is not packed yet: {missing}; wait for the packer, or run `zhlm run` again") from None


def open_blocks(run: Run) -> Opened:
    """Raises: RunError when nothing was planned there yet."""
    config = load_config(run.config.on_disk())
    plan = read_plan(run.blocks)
    if plan is None:
        raise RunError(f"blocks: {run.folder} has no blocks/plan.json, expected a run that packs or has packed; run `zhlm run FILE`")
    return Opened(run, config, plan)


def show_overview(opened: Opened, console: Console) -> None:
    """Streams and splits, dropped documents, the recipe, what is missing, and how well the streams mix."""
    parts, plan = opened.parts(), opened.plan
    table = _table("stream", "split", "parts", "blocks", "documents", "tokens", "fill", "on disk")
    for name in plan.streams:
        for split in SPLITS:
            numbers = plan.of_split(name, split)
            shards = [parts[name, n].shards[split] for n in numbers if (name, n) in parts]
            packed = f"{len(shards):,}" if len(shards) == len(numbers) else f"{len(shards):,} of {len(numbers):,}"
            table.add_row(name, split, packed, *_sums(opened, shards))
    console.print(table)
    for name, planned in plan.streams.items():
        own = [parts[name, n] for n in range(len(planned)) if (name, n) in parts]
        dropped = sum((Counter(p.dropped) for p in own), Counter[str]())
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in dropped.most_common()) or "nothing"
        cut = sum(s.cut_tokens for p in own for s in p.shards.values())
        cut_off = f", cut off {cut:,} tokens" if cut else ""
        console.print(Text(f"{name}: {sum(p.documents for p in own):,} documents read, dropped {reasons}{cut_off}"))
    console.print(Text(f"recipe: {', '.join(_words(plan.recipe))}"))
    changed = opened.changed_files()
    if changed:
        shown = ", ".join(changed[:FILE_NAMES]) + (f" and {len(changed) - FILE_NAMES:,} more" if len(changed) > FILE_NAMES else "")
        console.print(Text(f"other than packed: {shown}; `zhlm run` packs them again", "yellow"))
    missing = {name: sum((name, n) not in parts for n in range(len(planned))) for name, planned in plan.streams.items()}
    if any(missing.values()):
        left = (f"{name} {count:,} of {len(plan.streams[name]):,} parts" for name, count in missing.items() if count)
        console.print(Text(f"still to pack: {', '.join(left)}", "yellow"))
    _show_mix(opened, console)


def _sums(opened: Opened, shards: list[Shard]) -> list[str]:
    blocks, documents, tokens = (sum(getattr(s, what) for s in shards) for what in ("blocks", "documents", "tokens"))
    room = blocks * opened.config.pack.block_tokens
    fill = f"{tokens / room:.2%}" if room else "-"
    return [f"{blocks:,}", f"{documents:,}", f"{tokens:,}", fill, _size(bytes_of(opened.run.store, shards))]


def _show_mix(opened: Opened, console: Console) -> None:
    try:
        with opened.asking("the mix") as reader:
            reached = reader.order.shares_in(0, MIX_BLOCKS)
            asked = reader.weights
    except RunError as error:
        console.print(Text(f"mix: {error}", "yellow"))
        return
    total = sum(asked.values())
    shares = ", ".join(f"{name} {asked[name] / total:.1%} asked and {reached[name]:.1%} reached" for name in asked)
    console.print(Text(f"mix over the first {MIX_BLOCKS:,} blocks: {shares}"))


def show_order(opened: Opened, step: int, console: Console) -> None:
    """The blocks of an optimizer step (from 1) and of those after it, as many steps as fit."""
    size = opened.config.train.global_batch_blocks
    table = _table("step", "index", "stream", "epoch", "shard", "row", "source", left=("stream", "source"))
    names = [s.name for s in opened.config.streams]
    with opened.asking(f"step {step}") as reader:
        for each in range(step, step + max(1, ORDER_LINES // size)):
            try:
                addresses = reader.addresses(range((each - 1) * size, each * size))
            except NotPacked:
                if each == step:
                    raise
                break
            for index, a in enumerate(addresses, (each - 1) * size):
                source = reader.part(a.stream, a.shard).source
                table.add_row(str(each), f"{index:,}", names[a.stream], str(a.epoch), str(a.shard), f"{a.row:,}", source)
    console.print(table)


def show_block(opened: Opened, index: int, console: Console, objective: str | None = None) -> None:
    """A block of the training order as the model sees it, document by document: under the run's objective, or under another one, with
    that one's defaults.

    Raises: RunError for a block or a tokenizer that is not there; BaseModelError or ConfigError when the tokenizer lacks what it needs.
    """
    config = opened.config
    if objective not in (None, config.objective.name):
        config = config.model_copy(update={"objective": BY_NAME[objective]()})
    with opened.asking(f"block {index}") as reader:
        (address,), blocks = reader.addresses([index]), reader.read([index])
        source = reader.source(index)
    # By name: these need transformers and torch, which the other views do without.
    room = importlib.import_module("zhlm.tokenizer.load")
    model, revision = opened.run.base_model(config), None if config.vocab else config.base.revision
    tokenizer = room.load_tokenizer(model, revision)
    packed, now = opened.plan.recipe.get("tokenizer"), room.digest_of(tokenizer)
    if packed not in (None, now):
        raise RunError(f"blocks: {opened.run.folder} was packed with the tokenizer {packed}, that of {model} is {now}; run `zhlm run FILE`")
    seen = importlib.import_module("zhlm.objectives.seen").see(config, tokenizer, model, revision, blocks, index)
    ends, room_T = [int(e) for e in blocks.ends[0]], len(blocks.ids_BT[0])
    stream = config.streams[address.stream].name
    console.print(
        Text(
            f"block {index:,}: stream {stream}, epoch {address.epoch}, shard {address.shard}, row {address.row}, from {source}\n"
            f"{ends[-1]:,} of {room_T:,} tokens (fill {ends[-1] / room_T:.1%}), {len(ends)} documents or pieces of one\n{seen.summary}",
            "bold",
        )
    )
    for number, ((start, end), document) in enumerate(zip(pairwise([0, *ends]), seen.documents, strict=True), 1):
        console.print(Text(f"---- {number}: {end - start:,} tokens{document.note}", "dim"))
        colour = COLOURS[number % len(COLOURS)]
        for line in document.lines:
            console.print(Text.assemble(*((text, f"{colour} reverse" if stands_out else colour) for text, stands_out in line)))


def verify_blocks(opened: Opened, console: Console) -> int:
    """Read every shard again, with a line for each bad one. Returns the exit code: 1 when there is one."""
    parts = opened.parts()
    with _bar(console, "verify", len(parts)) as advance:
        bad = list(bad_shards(opened.run.store, parts, opened.vocabulary, advance))
    for each in bad:
        console.print(Text(f"bad: {each.problem} (from {each.part.source})", "red"))
    shards = sum(len(p.shards) for p in parts.values())
    if bad:
        console.print(Text(f"{len(bad):,} of {shards:,} shards are bad; run `zhlm blocks {opened.run.folder} --repair`", "red"))
        return 1
    console.print(Text(f"{shards:,} shards are as the ledger says", "green"))
    return 0


def repair_blocks(opened: Opened, console: Console) -> int:
    """Throw away what is damaged and say what that was."""
    with _bar(console, "repair", len(Ledger(opened.run.blocks).sound()[0])) as advance:
        done = repair(opened.run, opened.plan, opened.vocabulary, advance)
    for line in done:
        console.print(Text(line))
    count, num_bytes = remove_leftovers(opened.run.store)
    if count:
        console.print(Text(f"deleted: {count:,} temporary files of killed packers, {_size(num_bytes)}"))
    console.print(Text("the next `zhlm run` packs what is missing" if done else "nothing to repair", "green"))
    return 0


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _table(*names: str, left: tuple[str, ...] = ("stream", "split")) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=name != "source", overflow="fold")
    return table


def _words(recipe: Mapping[str, Any]) -> list[str]:
    """Settings that are on, as words: {"packing": "concat", "clean": {"normalise": True}} -> packing concat, normalise."""
    words: list[str] = []
    for key, value in recipe.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            words += _words(value)
        elif value is True:
            words.append(name)
        elif value not in (None, False, "none", []):
            words.append(f"{name} {f'{value:,}' if isinstance(value, int) else value}")
    return words


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            break
        num_bytes, unit = num_bytes / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{num_bytes:.3g} {unit}"
