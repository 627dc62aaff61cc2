"""Rows in other places, in every class of model: input, head and the head's bias."""

from pathlib import Path

import pytest
import torch

from tiny_bases import bert_folder, bloom_folder, gpt2_folder, t5_folder
from zhlm.embeddings.replace import rows_for
from zhlm.model.inspect import is_tied
from zhlm.model.load import load_model
from zhlm.model.resize import replace_rows

FOLDERS = {
    "bert": bert_folder,
    "t5": t5_folder,
    "mt5": lambda path: t5_folder(path, tied=False),
    "gpt2": gpt2_folder,
    "bloom": bloom_folder,
}


@pytest.mark.parametrize("num_rows", [20, 2000])
@pytest.mark.parametrize("kind", FOLDERS)
def test_rows_move_start_from_their_spelling_and_the_folder_reloads(kind: str, num_rows: int, tmp_path: Path) -> None:
    model = load_model(str(FOLDERS[kind](tmp_path / "base")))
    tables = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
        bias = bias.detach().clone()
    tied = is_tied(model)
    replace_rows(model, 100, num_rows, rows_for(num_rows, {7: 3, 0: 9}, {1: [4, 6], 5: []}, "subword_mean", 0.02))
    model.save_pretrained(tmp_path / "out")
    again = load_model(str(tmp_path / "out"))
    assert is_tied(again) is tied and again.config.vocab_size == num_rows
    for table, old in zip((again.get_input_embeddings(), again.get_output_embeddings()), tables, strict=True):
        old = old[:100]
        assert table.weight.shape[0] == num_rows
        assert torch.equal(table.weight[[7, 0]], old[[3, 9]])
        torch.testing.assert_close(table.weight[1], old[[4, 6]].mean(0))
        for mean_row in (5, 2, num_rows - 1):
            torch.testing.assert_close(table.weight[mean_row], old.mean(0))
    if bias is not None:
        now = again.get_output_embeddings().bias
        assert torch.equal(now[[7, 0]], bias[[3, 9]]) and len(now) == num_rows
        torch.testing.assert_close(now[2], bias[:100].mean())
    ids = torch.tensor([[0, 7, 5, num_rows - 1]])
    more = {"decoder_input_ids": ids} if again.config.is_encoder_decoder else {}
    with torch.no_grad():
        assert again(input_ids=ids, **more).logits.shape == (1, 4, num_rows)


@pytest.mark.parametrize("init", ["mean", "mean_noise", "random"])
def test_other_starts_leave_what_is_copied(init: str) -> None:
    old_VD = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    new_WD = rows_for(6, {0: 1}, {1: [2], 2: [3, 4]}, init, 0.02)(old_VD)
    assert torch.equal(new_WD[0], old_VD[1]) and new_WD.shape == (6, 4)
    assert torch.equal(new_WD[1], new_WD[2]) == (init == "mean")
