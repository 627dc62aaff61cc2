"""All stages of a run in order: `python -m ray_jobs.pipeline --config FILE`."""

import sys

from zhlm.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
