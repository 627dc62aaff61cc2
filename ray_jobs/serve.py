"""Serve a finished run's model until stopped: `python -m ray_jobs.serve --config FILE`."""

import argparse
import sys

from zhlm.config.load import dump_config, load_config
from zhlm.errors import UserError, ZhlmError
from zhlm.serve.job import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.serve", description="Serve the merged model of a config's run.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override a setting; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config, and stop")
    options = parser.parse_args()
    try:
        config = load_config(options.config, options.set)
        if options.dry_run:
            print(dump_config(config))
        else:
            run(config)
    except ZhlmError as error:
        print(f"zhlm: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
