"""The newest checkpoint -> adapter/ and merged/, both loaded again and compared before the stage counts as done."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from zhlm.adapt.lora import make_trainable, merged, trained_parameters
from zhlm.adapt.new_rows import as_peft_saves, is_split, new_rows_of
from zhlm.checkpoint.state import Checkpoint, newest
from zhlm.config.schema import RunConfig
from zhlm.errors import RunError, VerificationError
from zhlm.export.card import model_card
from zhlm.model.load import load_base, load_model, model_positions
from zhlm.model.ties import unwarned
from zhlm.records import Progress, Report
from zhlm.storage import Run
from zhlm.tokenizer.load import load_tokenizer
from zhlm.tokenizer.plain import as_plain
from zhlm.tokenizer.special import document_token, generation_ids

TOLERANCE = 1e-4
"""Largest difference of logits in float32 between the trained model and what was written, as a share of the largest logit, or of 1:
merging rounds, nothing else may differ."""
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
    probe = _probe(model)
    expected_BTV = _logits(model, probe)

    with where.export.staged() as folder:
        facts: dict[str, Any] = {"step": checkpoint.state.step}
        card = model_card(config, checkpoint.state)
        if isinstance(model, PeftModel):
            report(Progress("export", 1, 3, "steps", {"doing": "writing adapter/"}))
            adapted = as_peft_saves(model, _base(config, source)) if is_split(model) else model
            _write_adapter(adapted, tokenizer, folder / "adapter", str(where.vocab if config.vocab else config.base.model), card)
            del adapted
            with unwarned():
                reloaded = PeftModel.from_pretrained(_base(config, source), folder / "adapter")
            facts["adapter_difference"] = _difference(reloaded, probe, expected_BTV, "adapter")
        report(Progress("export", 2, 3, "steps", {"doing": "writing merged/"}))
        _write_merged(merged(model), tokenizer, folder / "merged", config, card)
        facts["merged_difference"] = _difference(load_model(str(folder / "merged")), probe, expected_BTV, "merged")
        _check_tokenizer(folder / "merged", tokenizer)
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
    """Put around a text what training put around each document, so that every reader of the folder sees what the model saw: [CLS] and
    [SEP] for a BERT that had both. A prompt is to be continued and has no end; masked models and encoders read whole documents."""
    start = document_token(tokenizer, config.pack.document_start)
    whole = config.objective.name in ("masked", "span_corruption")
    end = document_token(tokenizer, config.pack.document_end) if whole else None
    bare, around = tokenizer("a", add_special_tokens=False).input_ids, [token for token in (start, end) if token]
    if tokenizer("a").input_ids == [*([start.id] if start else []), *bare, *([end.id] if end else [])]:
        return tokenizer
    first, last = start.text if start else "", end.text if end else ""
    second = (f"{first}:1" if first and not whole else "", "$B:1", f"{last}:1" if last else "")
    tokenizer.backend_tokenizer.post_processor = (
        TemplateProcessing(
            single=f"{first} $A {last}".strip(),
            pair=" ".join(filter(None, (first, "$A", last, *second))),
            special_tokens=[(token.text, token.id) for token in around],
        )
        if around
        else None
    )
    # BertTokenizer and others put their own back when a folder is loaded.
    return tokenizer if type(tokenizer) is PreTrainedTokenizerFast else as_plain(tokenizer)


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found, expected = (each("a").input_ids for each in (load_tokenizer(str(folder)), tokenizer))
    if found != expected:
        raise VerificationError(
            f"export: the tokenizer of {folder.name}/ gives the ids {found} where training had {expected}; nothing was published, please "
            "report this with the config"
        )


def _write_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerFast, folder: Path, base: str, card: str) -> None:
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = base
    # Said explicitly: "auto" would ask the hub whether the base's vocabulary was changed.
    model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, config: RunConfig, card: str) -> None:
    if model.can_generate():
        starts = (getattr(each, "decoder_start_token_id", None) for each in (model.config, model.generation_config))
        decoder_start = next((start for start in starts if start is not None), tokenizer.pad_token_id)
        decoder = {"decoder_start_token_id": decoder_start} if model.config.is_encoder_decoder else {}
        ids = generation_ids(tokenizer) | decoder
        model.generation_config = GenerationConfig(**ids, max_new_tokens=config.evaluate.generate.max_new_tokens)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _probe(model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """Inputs that the model's class takes."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    rows, tokens = base.get_input_embeddings().weight.shape[0], min(PROBE_TOKENS, model_positions(base) or PROBE_TOKENS)
    ids_BT = torch.randint(0, rows, (2, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids_BT} | ({"decoder_input_ids": ids_BT.flip(1)} if base.config.is_encoder_decoder else {})


def _logits(model: torch.nn.Module, probe: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**probe).logits
    return logits.float()


def _difference(reloaded: torch.nn.Module, probe: dict[str, torch.Tensor], expected_BTV: torch.Tensor, name: str) -> float:
    difference = float((_logits(reloaded.eval(), probe) - expected_BTV).abs().max())
    tolerance = TOLERANCE * max(1.0, float(expected_BTV.abs().max()))
    if not difference < tolerance:
        raise VerificationError(
            f"export: {name}/ differs from the trained model by {difference:.2e} in its logits, expected less than {tolerance:.0e}; "
            "nothing was published, please report this with the config"
        )
    return difference
