"""Pack the corpus into token blocks: `python -m ray_jobs.pack --config FILE`."""

import sys

from zhlm.pipeline import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("pack"))
