"""Every pair of ways to train: ZeRO stage and offload, what is trained, tied or not, architecture, precision."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.matrix import ADDED, AXES, VOCABULARY, covering, every, outcomes


# PEFT does not know GPT-2's and BLOOM's names for their embeddings; that tied stays tied is what equal logits after reloading show.
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")
@pytest.mark.timeout(240)
def test_every_pair_trains_resumes_and_gives_the_same_logits_when_loaded_again(tmp_path: Path, ray_local: dict[str, str]) -> None:
    chosen = covering()
    assert len(chosen) == len(AXES["zero"]) * len(AXES["method"]), "no fewer can cover these two"
    assert set().union(*(one.pairs for one in chosen)) == set().union(*(one.pairs for one in every()))
    found = {one.name: outcome for one, outcome in outcomes(chosen, tmp_path)}
    assert len(found) == len(chosen)
    assert {name: outcome for name, outcome in found.items() if outcome["result"] != "works"} == {}
    extended = [run for run in (tmp_path / "runs").iterdir() if (run / "vocab").exists()]
    assert len(extended) == sum(one.method == "lora + new_rows" for one in chosen) >= len(AXES["zero"])
    for run in extended:
        check_old_rows(run)


def check_old_rows(run: Path) -> None:
    """Two workers held a half of each tensor; export's embedding and head differ from the base's in the new rows, and in no other."""
    before, after = (AutoModelForCausalLM.from_pretrained(run / place) for place in ("vocab", "export/merged"))
    first = VOCABULARY - ADDED
    for part in ("get_input_embeddings", "get_output_embeddings"):
        was, now = (getattr(model, part)().weight.detach() for model in (before, after))
        assert len(was) == len(now) == VOCABULARY and torch.equal(was[:first].to(now.dtype), now[:first]), run.name
        assert (was[first:].to(now.dtype) != now[first:]).any(dim=1).all(), run.name
