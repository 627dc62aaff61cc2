"""What a run will do and need, before anything starts: streams and repeats, steps, parameters, memory, checkpoints, cluster."""

from collections.abc import Sequence
from dataclasses import dataclass

from zhlm.blocks.mix import repeats_of, shares_of, steps_of
from zhlm.config.objective import MaskedConfig, PrefixConfig, SpanCorruptionConfig
from zhlm.config.schema import ResourcesConfig, RunConfig
from zhlm.config.stages import trains_while_packing
from zhlm.model.kind import check_fits
from zhlm.objectives.spans import lengths, typical_lengths
from zhlm.submit.memory import Counts, MemoryPart, count_parameters, worker_memory
from zhlm.submit.sources import StreamSize, base_config, check_prompts, source_bytes, stream_sizes, trained_shape


@dataclass(frozen=True)
class StreamPlan:
    name: str
    role: str
    share: float
    """Of the trained tokens."""
    available: StreamSize
    needed_tokens: int | None
    seen_times: float | None
    """Passes over the stream; below 1 a part of it stays unused."""


@dataclass(frozen=True)
class Plan:
    """Everything `zhlm plan` prints; None where only the cluster could tell."""

    name: str
    streams: tuple[StreamPlan, ...]
    block_tokens: int
    steps: int | None
    steps_final: bool
    """Given by the config or counted, not estimated."""
    blocks: int | None
    counts: Counts
    model_type: str
    objective: str
    """What is learned, and how much of a block."""
    vocabulary: int
    vocabulary_final: bool
    zero_stage: int
    precision: str
    memory: tuple[MemoryPart, ...]
    """Of one worker, with the least number of workers."""
    keep_checkpoints: int
    keep_best: int
    resources: ResourcesConfig
    overlaps: bool
    """Training begins while the corpus is still packed."""

    @property
    def tokens(self) -> int | None:
        return None if self.blocks is None else self.blocks * self.block_tokens


def make_plan(config: RunConfig) -> Plan:
    """The plan of a run, without starting anything.

    Raises: BaseModelError when the base's config is not within reach or of a class that the objective does not fit,
    CorpusError for a corpus path that holds nothing, RunError for a prompt without the mask that a masked model needs.
    """
    check_fits(config.objective, base_config(config), config.base.model)
    check_prompts(config)
    shape, final = trained_shape(config)
    sizes = stream_sizes(config, shape)
    blocks = {name: size.blocks for name, size in sizes.items() if size.blocks is not None}
    steps = config.train.steps
    if len(blocks) == len(sizes):
        steps = steps_of(config, blocks)
    total = None if steps is None else steps * config.train.global_batch_blocks
    seen = {} if steps is None or len(blocks) < len(sizes) else repeats_of(config, blocks, steps)
    shares = shares_of(config)
    streams = [
        StreamPlan(
            s.name,
            s.role,
            shares[s.name],
            sizes[s.name],
            None if total is None else round(total * shares[s.name] * config.pack.block_tokens),
            seen.get(s.name),
        )
        for s in config.streams
    ]
    return Plan(
        name=config.name,
        streams=tuple(streams),
        block_tokens=config.pack.block_tokens,
        steps=steps,
        steps_final=config.train.steps is not None or all(size.measured for size in sizes.values()),
        blocks=total,
        counts=count_parameters(config, shape),
        model_type=shape.model_type,
        objective=_objective(config),
        vocabulary=shape.vocabulary,
        vocabulary_final=final,
        zero_stage=config.train.zero_stage,
        precision=config.train.precision,
        memory=tuple(worker_memory(config, shape, config.resources.min_workers)),
        keep_checkpoints=config.train.keep_checkpoints,
        keep_best=config.train.keep_best,
        resources=config.resources,
        overlaps=trains_while_packing(config, source_bytes(config), None),
    )


def _objective(config: RunConfig) -> str:
    objective, tokens = config.objective, config.pack.block_tokens
    if isinstance(objective, MaskedConfig):
        return f"masked, {objective.mask_share:.0%} of the tokens{', whole words' if objective.whole_words else ''}"
    if isinstance(objective, PrefixConfig):
        return f"prefix, {objective.min_share:.0%} to {objective.max_share:.0%} of a document"
    if isinstance(objective, SpanCorruptionConfig):
        settings = tokens, objective.noise_share, objective.mean_span
        read, written = typical_lengths(*settings)
        most_read, most_written = lengths(*settings)
        return (
            f"span_corruption, of a block {read:,} tokens to read and {written:,} to write where it is one document, at most "
            f"{most_read:,} and {most_written:,}"
        )
    return objective.name


def format_plan(plan: Plan) -> str:
    """The plan as a table for a terminal; `~` marks an estimate."""
    sections = [_stream_lines(plan), _training_lines(plan), _memory_lines(plan), _cluster_lines(plan)]
    return "\n\n".join("\n".join(lines) for lines in [[f"plan of {plan.name}   (~ marks an estimate)"], *sections])


def _stream_lines(plan: Plan) -> list[str]:
    rows = [("stream", "role", "share", "documents", "tokens there", "tokens needed", "")]
    for s in plan.streams:
        mark = "" if s.available.measured else "~"
        seen = f"{mark}{_seen(s.seen_times)}" if s.seen_times is not None else "size unknown until packed"
        there, needed = _number(s.available.tokens, mark), _number(s.needed_tokens, "" if plan.steps_final else "~")
        rows.append((s.name, s.role, f"{s.share:.0%}", _number(s.available.documents, ""), there, needed, seen))
    return _table(rows)


def _seen(times: float) -> str:
    return f"repeats {times:.1f}x" if times > 1.05 else f"uses {min(times, 1):.0%}"


def _training_lines(plan: Plan) -> list[str]:
    mark = "" if plan.steps_final else "~"
    rest = "" if plan.vocabulary_final else "~"
    counts, total = plan.counts, plan.counts.trainable + plan.counts.frozen
    return [
        "training",
        *_table(
            [
                (
                    "  steps",
                    f"{_number(plan.steps, mark)} of {_number(plan.blocks, mark)} blocks in all, {plan.block_tokens:,} tokens each",
                ),
                ("  tokens", _number(plan.tokens, mark)),
                ("  model", f"{plan.model_type}, {rest}{plan.vocabulary:,} vocabulary rows, {rest}{_short(total)} parameters"),
                ("  objective", plan.objective),
                ("  trainable", f"{rest}{counts.trainable:,} ({counts.trainable / total:.1%})"),
                ("  frozen", f"{rest}{counts.frozen:,}"),
                ("  checkpoint", f"{rest}{_size(counts.checkpoint_bytes)} each, {_kept(plan)}"),
            ]
        ),
    ]


def _kept(plan: Plan) -> str:
    best = {0: "", 1: " and the best"}.get(plan.keep_best, f" and the best {plan.keep_best}")
    return f"the last {plan.keep_checkpoints}{best} kept"


def _memory_lines(plan: Plan) -> list[str]:
    workers = plan.resources.min_workers
    title = f"memory per worker (ZeRO {plan.zero_stage}, {plan.precision}, {workers} worker{'s' if workers > 1 else ''})"
    rows = [
        (f"  {p.name}", ("~" if p.estimated else "") + _size(p.size_bytes) + (" in CPU memory" if p.on_host else "")) for p in plan.memory
    ]
    on_device = sum(p.size_bytes for p in plan.memory if not p.on_host)
    return [title, *_table([*rows, ("  together", f"~{_size(on_device)}, plus the libraries' own")])]


def _cluster_lines(plan: Plan) -> list[str]:
    needs = plan.resources
    each = ", ".join(f"{amount:g} {kind}" for kind, amount in (("CPU", needs.cpus_per_worker), ("GPU", needs.gpus_per_worker)) if amount)
    least, most = needs.min_workers, needs.max_workers
    workers = f"{least}" if least == most else f"{least} to {most}"
    return [
        "the cluster must have",
        *_table(
            [
                ("  training", f"{workers} x {{{each}}}"),
                ("  packing", f"{needs.pack_tasks} x {{1 CPU}}, {'beside' if plan.overlaps else 'before'} training"),
                ("  driver", "one process on the head node, no CPU reserved"),
            ]
        ),
    ]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: int | None, mark: str) -> str:
    return "?" if value is None else f"{mark}{value:,}"


def _short(value: int) -> str:
    """1,234,567 -> 1.23 M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} TiB"
