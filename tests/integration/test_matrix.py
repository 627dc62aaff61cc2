"""Every pair of ways to train: ZeRO stage and offload, what is trained, tied or not, architecture, precision."""

from pathlib import Path

import pytest

from benchmarks.matrix import AXES, Combination, covering, every, outcomes, prepare, refused

WORKING = ("gpt2", "llama")
"""BLOOM is refused: its attention takes no positions, so that packed documents would see each other."""


def test_a_base_that_cannot_keep_documents_apart_is_refused(tmp_path: Path) -> None:
    said = {a: refused(prepare(Combination("2", "lora", True, a, "float32"), tmp_path)) for a in AXES["architecture"]}
    assert [a for a, why in said.items() if not why] == list(WORKING)
    assert said["bloom"].startswith("train: BloomForCausalLM takes no position_ids, so documents packed into one block")


# PEFT does not know GPT-2's name for its embedding; that tied stays tied is what equal logits after reloading show.
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")
@pytest.mark.timeout(240)
def test_every_pair_trains_resumes_and_gives_the_same_logits_when_loaded_again(tmp_path: Path, ray_local: dict[str, str]) -> None:
    axes = AXES | {"architecture": WORKING}
    chosen = covering(axes)
    assert len(chosen) == len(AXES["zero"]) * len(AXES["method"]), "no fewer can cover these two"
    assert set().union(*(one.pairs for one in chosen)) == set().union(*(one.pairs for one in every(axes)))
    found = {one.name: outcome for one, outcome in outcomes(chosen, tmp_path)}
    assert len(found) == len(chosen)
    assert {name: outcome for name, outcome in found.items() if outcome["result"] != "works"} == {}
