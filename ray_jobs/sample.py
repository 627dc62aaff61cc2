"""Make the offline sample: a corpus of known entropy and a tiny base model: `python -m ray_jobs.sample --config FILE`."""

import sys

from zhlm.pipeline import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("sample"))
