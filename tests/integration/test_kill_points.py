"""To the bit, proved by force: killed at random points, also inside a save, a training ends with the weights that it would have had.

ZHLM_KILL_POINTS says at how many; `make chaos` takes 50.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import run_data, save_tiny_llama, write_blocks
from zhlm.storage import Place, Run

POINTS = int(os.environ.get("ZHLM_KILL_POINTS", "4"))
STEPS = 20 + 5 * POINTS
"""More than so many attempts can do, each of which is killed within five steps or two saves."""

LIMIT_S = 150 + 12 * POINTS

pytestmark = pytest.mark.timeout(LIMIT_S + 30)


def prepared(folder: Path, kills: int) -> dict[str, Any]:
    """What kill_points.py is to train, and how often to kill it."""
    write_blocks(folder / "runs" / "tiny", ["zh", "en"])
    data = run_data(folder, steps=STEPS, checkpoint_every=2, validate_every=STEPS, lora={"r": 4, "dropout": 0.2})
    data["base"]["model"] = str(folder.parent / "base")
    data["resources"]["workers"] = 1
    return {"config": data, "folder": str(folder / "runs" / "tiny"), "steps": STEPS, "kills": kills, "seed": 3}


def checksums(folder: str) -> dict[str, str]:
    """Of the tensors of the last checkpoint, from a run that told each step once."""
    run = Run(Place(folder))
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss_nats" in row] == list(range(1, STEPS + 1))
    found: dict[str, str] = json.loads((run.checkpoints / f"step_{STEPS:08d}" / "progress.json").read_text())["sha256"]
    return found


def test_wherever_it_is_killed_the_final_weights_are_the_same_bits(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "base")
    runs = [prepared(tmp_path / name, kills) for name, kills in (("calm", 0), ("hit", POINTS))]
    command = [sys.executable, str(Path(__file__).with_name("kill_points.py")), json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])[1]
    print(told)
    assert sum(told["killed"].values()) == POINTS and (told["inside_a_save"] > 0 or POINTS < 8)
    expected, found = (checksums(run["folder"]) for run in runs)
    assert found == expected and set(found) == {"trainable.safetensors", "optimizer.safetensors"}
