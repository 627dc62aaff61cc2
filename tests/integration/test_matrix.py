"""Every pair of ways to train: ZeRO stage and offload, what is trained, tied or not, architecture, precision."""

from pathlib import Path

import pytest

from benchmarks.matrix import AXES, covering, every, outcomes


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
