"""Extend the base's vocabulary with pieces of the new language: `python -m ray_jobs.vocab --config FILE`."""

import sys

from zhlm.pipeline import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("vocab"))
