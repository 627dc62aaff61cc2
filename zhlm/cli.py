"""The `zhlm` command: one thin line per verb. Everything is imported when its verb is used, so that --help is instant."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from zhlm.errors import ConfigError, RunError, UserError, ZhlmError

ADDRESS = "http://127.0.0.1:8265"
WIDTH = 160
"""Columns of a table where the output is not a terminal."""
EXAMPLES = """\
examples:
  zhlm plan configs/sample.yaml                        what it will do and need, before anything starts
  zhlm run configs/sample.yaml                         all stages, here
  zhlm run configs/sample.yaml --set train.steps=50    with a setting changed
  zhlm submit configs/sample.yaml                      the same on a cluster
  zhlm blocks runs/sample                              what was packed, dropped and is still missing
  zhlm model Qwen/Qwen3-0.6B                           its layers, sizes and names
  zhlm vocab BASE --corpus data/zh --out extended      only the vocabulary: base and corpus in, a proven base out
  zhlm generate runs/sample --prompt "今天"            base and adapted model side by side
  zhlm serve runs/sample                               HTTP server, OpenAI-compatible for causal models

Finished stages are skipped when a command is given again; Ctrl-C loses at most the steps since the last checkpoint.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a failure, 2 for a user's mistake, 130 when interrupted."""
    options = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.call
    try:
        return run(options)
    except ZhlmError as error:
        print(f"zhlm: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("zhlm: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All verbs and options; a test holds them fixed, because settings belong into the config file."""
    parser = argparse.ArgumentParser(
        prog="zhlm",
        description="Teach an existing language model Chinese, on this machine or a Ray cluster. One YAML file describes a run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _verb(verbs, "run", _run, "run all stages of a config here; finished ones are skipped")
    _config_options(run)
    run.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, and stop")

    plan = _verb(verbs, "plan", _plan, "print steps, repeats, memory and what the cluster must have; starts nothing")
    _config_options(plan)
    plan.add_argument("--cluster", metavar="YAML", help="also check that this cluster-launcher file can hold the run")

    submit = _verb(verbs, "submit", _submit, "send the current folder to a cluster, run the config there, follow its log")
    _config_options(submit)
    _address_option(submit)

    _address_option(_verb(verbs, "jobs", _jobs, "list the jobs of a cluster"))

    logs = _verb(verbs, "logs", _logs, "print the log of a job")
    logs.add_argument("id", metavar="ID", help="as `zhlm jobs` shows it")
    _address_option(logs)
    logs.add_argument("--follow", action="store_true", help="go on until the job ends")

    stop = _verb(verbs, "stop", _stop, "stop a job")
    stop.add_argument("id", metavar="ID", help="as `zhlm jobs` shows it")
    _address_option(stop)

    _blocks_options(_verb(verbs, "blocks", _blocks, "show the packed blocks of a run, verify and repair them, print their order"))

    model = _verb(verbs, "model", _model, "print what a base is made of, its linear layers, and what LoRA would train; loads no weights")
    model.add_argument("base", metavar="BASE", help="hub name, or a folder such as runs/sample/vocab")

    _vocab_options(
        _verb(verbs, "vocab", _vocab, "extend the vocabulary of a model, with proof, into a new folder; or prove a tokenizer (--verify)")
    )

    _generate_options(_verb(verbs, "generate", _generate, "answer prompts with the base and the adapted model, side by side"))

    serve = _verb(verbs, "serve", _serve, "serve the merged model of a run over HTTP, until stopped")
    serve.add_argument("run", metavar="RUN", help="run folder, such as runs/sample")
    serve.add_argument("--port", type=_number(int, 1, 65535), metavar="N", help="port to listen on (the config's serve.port)")
    return parser


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _verb(verbs: Verbs, name: str, call: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(call=call)
    return parser


def _config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="FILE", help="YAML file of the run, such as configs/sample.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override a setting; may be repeated")


def _address_option(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("RAY_API_SERVER_ADDRESS", ADDRESS)
    parser.add_argument(
        "--address", metavar="URL", default=default, help=f"the cluster's dashboard (RAY_API_SERVER_ADDRESS, else {ADDRESS})"
    )


def _blocks_options(blocks: argparse.ArgumentParser) -> None:
    blocks.add_argument("run", metavar="RUN", help="run folder, such as runs/sample")
    which = blocks.add_mutually_exclusive_group()
    which.add_argument("--verify", action="store_true", help="read every shard again: hash, counts, document ends, ids")
    which.add_argument("--repair", action="store_true", help="throw away what is damaged; the next `zhlm run` packs just that again")
    which.add_argument("--order", type=_number(int, 1, 10**12), metavar="STEP", help="the blocks of an optimizer step and of the next ones")
    which.add_argument(
        "--show", type=_number(int, 0, 10**15), metavar="N", help="block N of the training order (from 0) as the model sees it"
    )
    blocks.add_argument(
        "--objective",
        choices=("causal", "masked", "span_corruption", "prefix"),
        metavar="NAME",
        help="with --show: as it is under causal, masked, span_corruption or prefix (the run's own)",
    )


def _generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, such as runs/sample")
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="text to continue, with mask tokens to guess, or with <extra_id_0> to fill, as the run's objective has it; may be repeated",
    )
    parser.add_argument(
        "--top-p", type=_number(float, 1e-6, 1), default=0.9, metavar="P", help="sample among the likeliest tokens of this total (0.9)"
    )
    parser.add_argument("--temperature", type=_number(float, 0, 100), default=0.8, metavar="T", help="0 is greedy (0.8)")
    parser.add_argument(
        "--num-return-sequences", type=_number(int, 1, 1000), default=1, metavar="N", help="continuations of each prompt (1)"
    )
    parser.add_argument("--max-new-tokens", type=_number(int, 1, 1_000_000), default=64, metavar="N", help="length of a continuation (64)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed gives the same text (1)")


def _vocab_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", nargs="?", metavar="BASE", help="hub name or folder of the model to extend")
    parser.add_argument("--corpus", nargs="+", default=[], metavar="PATH", help="files, globs or folders of the language to learn")
    parser.add_argument("--old", nargs="+", default=[], metavar="PATH", help="the same of the language that the base knows, to measure on")
    parser.add_argument("--out", metavar="FOLDER", help="new or empty folder for tokenizer, model and proof")
    parser.add_argument("--rows", metavar="N", help="most new rows, as vocab.add_rows in a config")
    parser.add_argument("--init", metavar="WAY", help="start of a new row, as vocab.init; auto takes the best one")
    parser.add_argument("--compare-init", action="store_true", help="measure each start of new rows on held-out text")
    parser.add_argument("--word-list", metavar="FILE", help="a word per line, each a token of its own; with --rows 0 nothing else is added")
    parser.add_argument("--force", action="store_true", help="extend even where the base reads the corpus well")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="another setting of a config; may be repeated")
    parser.add_argument("--verify", metavar="FOLDER", help="prove this tokenizer instead: pieces, round trips, engines")
    parser.add_argument("--base", dest="before", metavar="BASE", help="with --verify: the tokenizer before its extension")


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")
        return value

    return parse


def _run(options: argparse.Namespace) -> int:
    from zhlm.pipeline import run_file

    return run_file(options.config, options.set, dry_run=options.dry_run)


def _plan(options: argparse.Namespace) -> int:
    from zhlm.config.load import load_config
    from zhlm.submit.plan import format_plan, make_plan
    from zhlm.submit.preflight import check_cluster_file

    config = load_config(options.config, options.set)
    print(format_plan(make_plan(config)))
    if options.cluster:
        check_cluster_file(config, options.cluster)
        print(f"  {options.cluster} can hold it")
    return 0


def _submit(options: argparse.Namespace) -> int:
    from zhlm.submit.jobs import submit

    return submit(options.config, options.set, options.address)


def _jobs(options: argparse.Namespace) -> int:
    from zhlm.submit.jobs import list_jobs

    print(list_jobs(options.address))
    return 0


def _logs(options: argparse.Namespace) -> int:
    from zhlm.submit.jobs import show_log

    return show_log(options.id, options.address, follow=options.follow)


def _stop(options: argparse.Namespace) -> int:
    from zhlm.submit.jobs import stop

    return stop(options.id, options.address)


def _blocks(options: argparse.Namespace) -> int:
    from rich.console import Console

    from zhlm.blocks import inspect
    from zhlm.storage import Place, Run

    if options.objective is not None and options.show is None:
        raise ConfigError("blocks: --objective says how to show a block; name one with --show N")
    opened = inspect.open_blocks(Run(Place(_run_folder(options.run))))
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
    if options.verify:
        return inspect.verify_blocks(opened, console)
    if options.repair:
        from zhlm.claim import locked

        with locked(opened.run):
            return inspect.repair_blocks(opened, console)
    if options.order is not None:
        inspect.show_order(opened, options.order, console)
    elif options.show is not None:
        inspect.show_block(opened, options.show, console, options.objective)
    else:
        inspect.show_overview(opened, console)
    return 0


def _model(options: argparse.Namespace) -> int:
    print(importlib.import_module("zhlm.model.describe").describe_base(options.base))  # by name, as below
    return 0


def _vocab(options: argparse.Namespace) -> int:
    # Both are loaded by name, as below.
    if options.verify is not None:
        if options.base is not None:
            raise ConfigError(f"vocab: {options.base} and --verify are both given; name the tokenizer before its extension with --base")
        code: int = importlib.import_module("zhlm.vocab.verify_command").verify_command(
            options.verify, options.before, options.corpus, options.out, print
        )
        return code
    if options.before is not None:
        raise ConfigError("vocab: --base goes with --verify; name the model to extend without it: `zhlm vocab BASE ...`")
    given = [f"vocab.add_rows={options.rows}"] * (options.rows is not None) + [f"vocab.init={options.init}"] * (options.init is not None)
    given += ["vocab.compare_init=true"] * options.compare_init + ["vocab.force=true"] * options.force
    extend = importlib.import_module("zhlm.vocab.extend_command").extend_command
    code = extend(options.base, options.corpus, options.old, options.out, given + options.set, options.word_list, print)
    return code


def _generate(options: argparse.Namespace) -> int:
    # Loaded by name: a static import would make the command depend on torch.
    generate = importlib.import_module("zhlm.evaluate.generate").run_generate
    settings = ("top_p", "temperature", "num_return_sequences", "max_new_tokens", "seed")
    print(generate(_run_folder(options.run), options.prompt, **{name: getattr(options, name) for name in settings}))
    return 0


def _serve(options: argparse.Namespace) -> int:
    importlib.import_module("zhlm.serve.job").serve_run(_run_folder(options.run), options.port)
    return 0


def _run_folder(given: str) -> str:
    if "://" not in given and not os.path.isfile(os.path.join(given, "config.yaml")):
        raise RunError(f"run: {given} holds no config.yaml, expected a run folder such as runs/sample; run `zhlm run FILE` first")
    return given
