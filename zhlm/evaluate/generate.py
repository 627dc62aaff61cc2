"""Continue a prompt, and show how the base and the adapted model continue the same one."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from zhlm.config.load import load_config
from zhlm.config.schema import GenerateConfig, RunConfig
from zhlm.errors import RunError
from zhlm.evaluate.columns import side_by_side
from zhlm.model.load import draw_model, load_model, model_positions
from zhlm.objectives.bits import special_ids
from zhlm.storage import MANIFEST, Place, Run
from zhlm.tokenizer.load import load_tokenizer


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(source: str, device: torch.device, revision: str | None = None, draw_seed: int | None = None) -> tuple[Any, Any]:
    """A causal model in evaluation mode, and its tokenizer, from a folder or the hub; with a seed, the base that was drawn by it.

    On a CPU in float32, so that a measurement does not depend on how the weights were stored; on a GPU as they were stored.
    Raises: BaseModelError when one of the two is missing or broken.
    """
    if draw_seed is not None:
        return draw_model(source, draw_seed, revision=revision).to(device), load_tokenizer(source, revision)
    model: Any = load_model(source, revision=revision, dtype=torch.float32 if device.type == "cpu" else "auto")
    return model.to(device), load_tokenizer(source, revision)


def both_models(config: RunConfig, run: Run) -> dict[str, tuple[str, str | None, int | None]]:
    """Source, revision and seed (where its weights are drawn) of the base and of the adapted model, as `load` takes them.

    Raises: RunError when the run has no finished export.
    """
    seed = config.seed if config.base.from_scratch else None
    return {"base": (run.original_model(config), config.base.revision, seed), "adapted": (merged_model(run), None, None)}


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompt: str, settings: GenerateConfig, num_return_sequences: int = 1, *, document_start: str = "none"
) -> list[str]:
    """The texts that follow the prompt, without it; the same seed gives the same texts. Greedy ones (temperature 0) are all alike.

    Raises: RunError for a prompt that is empty or leaves no room.
    """
    starts = special_ids(tokenizer, "bos") if document_start == "bos" else []
    ids = [*starts, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    room = _room(model, ids)
    sampled = settings.temperature > 0
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rule = GenerationConfig(
        max_new_tokens=min(settings.max_new_tokens, room),
        do_sample=sampled,
        temperature=settings.temperature if sampled else 1.0,
        top_p=settings.top_p if sampled else 1.0,
        top_k=0,  # transformers would cut to the 50 likeliest unasked
        num_return_sequences=num_return_sequences if sampled else 1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=pad if pad is not None else end if end is not None else 0,
    )
    prompt_1T = torch.tensor([ids], device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        written_RT = model.generate(input_ids=prompt_1T, attention_mask=torch.ones_like(prompt_1T), generation_config=rule)
    texts = [_continuation(tokenizer, ids, row.tolist()) for row in written_RT]
    return texts if sampled else texts * num_return_sequences


def _room(model: Any, ids: Sequence[int]) -> int:
    if not ids:
        raise RunError("generate: the prompt is empty and the run has no bos to start from; give a prompt of at least one character")
    positions = model_positions(model)
    if positions is None:
        return 1 << 30
    if len(ids) >= positions:
        raise RunError(f"generate: the prompt has {len(ids)} tokens and the model {positions} positions; shorten the prompt")
    return positions - len(ids)


def _continuation(tokenizer: Any, prompt_ids: list[int], ids: list[int]) -> str:
    """Decoded together with the prompt, because tokenizers with word marks drop the space at the start of what they decode."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    whole, head = str(tokenizer.decode(ids, **options)), str(tokenizer.decode(prompt_ids, **options))
    return whole[len(head) :] if whole.startswith(head) else str(tokenizer.decode(ids[len(prompt_ids) :], **options))


def merged_model(run: Run) -> str:
    """The local folder of the adapted model. Raises: RunError when the run has no finished export."""
    if not (run.of_stage("export") / MANIFEST).exists():
        raise RunError(f"generate: {run.folder} has no finished export; finish the run with `zhlm run CONFIG` first")
    return str((run.export / "merged").on_disk())


def open_run(folder: str) -> tuple[Run, RunConfig]:
    """A run by its folder, wherever its config says that it was made. Raises: RunError when the folder is no run."""
    run = Run(Place(folder))
    if not run.config.exists():
        raise RunError(f"generate: {folder} has no config.yaml, so it is not a run folder; name one such as runs/sample")
    return run, load_config(Path(run.config.on_disk()))


def run_generate(
    run_folder: str, prompts: Sequence[str], *, top_p: float, temperature: float, num_return_sequences: int, max_new_tokens: int, seed: int
) -> str:
    """Continuations of each prompt by the base and by the adapted model, as text for a terminal."""
    run, config = open_run(run_folder)
    sources = both_models(config, run)
    disable_progress_bar()  # of loading: it would stand in the text
    settings = GenerateConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    written: dict[str, list[list[str]]] = {}
    for name, (source, revision, seed_of_base) in sources.items():
        model, tokenizer = load(source, best_device(), revision, seed_of_base)
        start = config.pack.document_start
        written[name] = [generate(model, tokenizer, p, settings, num_return_sequences, document_start=start) for p in prompts]
    width = min(shutil.get_terminal_size((100, 24)).columns, 160)
    lines: list[str] = []
    for number, prompt in enumerate(prompts):
        lines += [f"> {prompt}", ""]
        for base, adapted in zip(written["base"][number], written["adapted"][number], strict=True):
            lines += [*side_by_side({"base": prompt + base, "adapted": prompt + adapted}, width), ""]
    return "\n".join(lines).rstrip("\n")
