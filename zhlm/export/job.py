"""The newest checkpoint -> adapter/ and merged/, both loaded again and compared before the stage counts as done."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from zhlm.checkpoint.state import Checkpoint, newest
from zhlm.config.schema import RunConfig
from zhlm.errors import RunError, VerificationError
from zhlm.export.card import model_card
from zhlm.model.load import load_base
from zhlm.model.lora import make_trainable, trained_parameters
from zhlm.model.new_rows import as_trainable_tokens, is_split, join_rows, new_rows_of
from zhlm.records import Progress, Report
from zhlm.storage import Run
from zhlm.tokenizer.load import load_tokenizer

TOLERANCE = 1e-4
"""Largest difference of logits in float32 between the trained model and what was written: merging rounds, nothing else may differ."""
PROBE_TOKENS = 64


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Write the Hugging Face folders of a run. Raises: RunError without a checkpoint, VerificationError when a folder does not agree."""
    where = Run.of(config)
    checkpoint, _ = newest(where.checkpoints)
    if checkpoint is None:
        raise RunError(f"export: {where.checkpoints} holds no whole checkpoint; run the train stage first")
    source = where.base_model(config)
    tokenizer = _tokenizer_as_trained(load_tokenizer(source, config.base.revision), config)
    report(Progress("export", 0, 3, "steps", {"doing": "loading the checkpoint"}))
    model = _trained_model(config, source, checkpoint)
    probe_BT = _probe(model)
    expected_BTV = _logits(model, probe_BT)

    with where.export.staged() as folder:
        facts: dict[str, Any] = {"step": checkpoint.state.step}
        card = model_card(config, checkpoint.state)
        if isinstance(model, PeftModel):
            report(Progress("export", 1, 3, "steps", {"doing": "writing adapter/"}))
            adapted = as_trainable_tokens(model, _base(config, source)) if is_split(model) else model
            _write_adapter(adapted, tokenizer, folder / "adapter", str(where.vocab if config.vocab else config.base.model), card)
            del adapted
            reloaded = PeftModel.from_pretrained(_base(config, source), folder / "adapter")
            facts["adapter_difference"] = _difference(reloaded, probe_BT, expected_BTV, "adapter")
        report(Progress("export", 2, 3, "steps", {"doing": "writing merged/"}))
        merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
        join_rows(merged)
        _write_merged(merged, tokenizer, folder / "merged", config, card)
        reloaded = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
        facts["merged_difference"] = _difference(reloaded, probe_BT, expected_BTV, "merged")
    report(Progress("export", 3, 3, "steps"))
    worst = max(facts[k] for k in facts if k.endswith("difference"))
    return facts | {"summary": f"{where.export}, logits as trained within {worst:.1e}"}


def _base(config: RunConfig, source: str) -> PreTrainedModel:
    return load_base(config, source)


def _trained_model(config: RunConfig, source: str, checkpoint: Checkpoint) -> PreTrainedModel | PeftModel:
    model = make_trainable(_base(config, source), config.train, config.seed, new_rows_of(config, Run.of(config)))
    values = checkpoint.trainable()
    parameters = trained_parameters(model)
    odd = sorted(set(values) ^ set(parameters))
    if odd:
        raise VerificationError(
            f"export: the checkpoint and {source} disagree about {len(odd)} trained tensors, such as {odd[0]}; train again"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
    return model.eval()


def _tokenizer_as_trained(tokenizer: PreTrainedTokenizerFast, config: RunConfig) -> PreTrainedTokenizerFast:
    """Put bos before a prompt exactly if training put it before each document, so that every reader of the folder prompts alike."""
    backend, bos = tokenizer.backend_tokenizer, tokenizer.bos_token
    if config.pack.document_start == "bos":
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    elif tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids:
        backend.post_processor = None
    return tokenizer


def _write_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerFast, folder: Path, base: str, card: str) -> None:
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = base
    # Said explicitly: "auto" would ask the hub whether the base's vocabulary was changed.
    model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, config: RunConfig, card: str) -> None:
    generate = config.evaluate.generate
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        max_new_tokens=generate.max_new_tokens,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _probe(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.randint(0, rows, (2, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))


def _logits(model: torch.nn.Module, probe_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=probe_BT, use_cache=False).logits
    return logits.float()


def _difference(reloaded: torch.nn.Module, probe_BT: torch.Tensor, expected_BTV: torch.Tensor, name: str) -> float:
    difference = float((_logits(reloaded.eval(), probe_BT) - expected_BTV).abs().max())
    if not difference < TOLERANCE:
        raise VerificationError(
            f"export: {name}/ differs from the trained model by {difference:.2e} in its logits, expected less than {TOLERANCE:.0e}; "
            "nothing was published, please report this with the config"
        )
    return difference
