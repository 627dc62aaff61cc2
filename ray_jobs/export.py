"""Write the newest checkpoint as Hugging Face folders: `python -m ray_jobs.export --config FILE`."""

import sys

from zhlm.pipeline import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("export"))
