"""Measure what was gained and what was forgotten: `python -m ray_jobs.evaluate --config FILE`."""

import sys

from zhlm.pipeline import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("evaluate"))
