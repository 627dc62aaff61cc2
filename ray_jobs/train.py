"""Continue the pretraining on the packed blocks: `python -m ray_jobs.train --config FILE`."""

import sys

from zhlm.pipeline import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("train"))
