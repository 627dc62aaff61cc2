"""What a run is: one frozen model per section of the YAML file, with meaning and unit under each field.

Everything a run does follows from one `RunConfig`. Numbers that can be computed from it (accumulation, warm-up steps, the DeepSpeed
dict) are computed where they are used, never written here a second time.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from zhlm.config.objective import CausalConfig, Objective
from zhlm.config.section import Pattern, Positive, Precision, Section, Share, Switch
from zhlm.config.serve import ServeConfig
from zhlm.config.trained import FreezeConfig, LoraConfig
from zhlm.config.vocabulary import VocabConfig


class StorageConfig(Section):
    root: str = "runs"
    """Folder that holds all runs: a local path (NFS included) or s3://bucket/prefix, gs://bucket/prefix."""


class SampleCorpusConfig(Section):
    documents: Positive = 16000
    """Stories to generate in each language, held-out ones included."""
    held_out_documents: Positive = 400
    """Stories of each language kept out of the training files."""
    seed: int = 11


class ScratchBaseConfig(Section):
    """A small Llama trained from scratch, for when no base model is at hand."""

    paths: Annotated[list[str], Field(min_length=1)]
    """Corpus the tokenizer and the model are trained on."""
    field: str | None = None
    vocabulary: Positive = 1536
    """Tokenizer entries, the 256 bytes and the special tokens included."""
    layers: Positive = 4
    width: Positive = 128
    heads: Positive = 4
    positions: Positive = 1024
    """Longest sequence the model can take, in tokens."""
    block_tokens: Positive = 256
    """Tokens in a training sequence: whole documents side by side; a longer one is cut."""
    steps: Positive = 500
    batch_tokens: Positive = 2048
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.block_tokens > self.positions:
            raise ValueError(f"block_tokens {self.block_tokens} exceeds positions {self.positions}; lower the first or raise the second")
        if self.block_tokens > self.batch_tokens:
            raise ValueError(
                f"block_tokens {self.block_tokens} exceeds batch_tokens {self.batch_tokens}; lower the first or raise the second"
            )
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not an even multiple of heads {self.heads}; set width to a multiple of {2 * self.heads}"
            )
        return self


class SampleConfig(Section):
    """What the `sample` stage makes first; its files are named sample://... everywhere else in the config."""

    corpus: SampleCorpusConfig | None = None
    """Generate the bilingual corpus of known entropy. None: use files of your own."""
    base: ScratchBaseConfig | None = None
    """Train a tiny base model. None: use a real one."""


class BaseConfig(Section):
    model: str
    """Hugging Face hub name, or a folder with model and tokenizer (sample://base is the one of the sample stage)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    from_scratch: bool = False
    """Take config and tokenizer only, and draw the weights by the run's seed; trained without LoRA."""


class StreamConfig(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    paths: list[str] = []
    """Files, globs or folders: .txt, .jsonl and .json, each also .gz or .zst; .parquet; .arrow; folders of `datasets` save_to_disk."""
    dataset: str | None = None
    """Instead of `paths`: a Hugging Face dataset, by hub name or as a local repository folder, read as a stream."""
    dataset_config: str | None = None
    dataset_split: str = "train"
    role: Literal["new", "old"]
    """new: the language to learn. old: replay, so that the base does not forget."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the trained tokens, relative to the other streams' weights."""
    field: str | None = None
    """JSONL key or table column of the text. None: the first of text, completion, content that exists."""
    skip_non_text: bool = False
    """Drop lines and rows whose field is missing or no text (null, a number), counted as `not_text`. false: the first one is an error."""
    document: Literal["line", "file"] = "line"
    """In .txt files: a document per line, or the whole file as one document."""
    max_repeats: Annotated[float, Field(gt=0)] | None = None
    """Most passes over this stream; a weight that needs more is refused. None: a small stream repeats as often as its weight asks."""
    held_out: list[str] = []
    """Files for validation and evaluation. Empty: a share of `paths` is held out by a hash of each document."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.paths) == (self.dataset is not None):
            raise ValueError(f"paths is {self.paths} and dataset is {self.dataset!r}; set exactly one of the two")
        return self


class CleanConfig(Section):
    normalise: bool = True
    """Unicode NFC, line ends, control characters and doubled spaces; Chinese punctuation is kept as it is."""
    to_simplified: bool = False
    """Traditional characters become simplified ones, by OpenCC."""
    boilerplate: bool = True
    """Remove lines that are page furniture (copyright, navigation, login, sharing, cookies); what is nothing else is dropped."""
    min_chars: Positive = 2
    """Fewest characters of a document."""
    max_chars: Positive = 1_000_000
    """Most characters of a document."""
    min_han_share: Share = 0.0
    """Least share of Han characters among the non-space ones, for streams of role `new`."""
    max_broken_share: Share = 0.05
    """Largest share of characters that a wrong decoder left (U+FFFD, private use, unassigned, mojibake); 1 turns the test off."""
    max_repeated_line_share: Share = 0.5
    """Largest share of a document's characters in lines that repeat an earlier line; 1 turns the test off."""
    max_repeated_ngram_share: Share = 0.9
    """Largest share of characters in sequences of 10 characters that occurred before, in documents of 400 characters and more; 1 turns
    the test off."""


class PackConfig(Section):
    block_tokens: Annotated[int, Field(ge=8)] = 1024
    """Tokens in a block: the length of the sequences the model trains on."""
    packing: Literal["best_fit", "concat", "none"] = "best_fit"
    """best_fit: a document that fits a block is never cut. concat: one long tape cut into blocks. none: a document per block."""
    truncate: bool = False
    """Of a document longer than a block keep the first block, and count the tokens that are cut off. False: it goes on in the next ones."""
    document_start: Literal["bos", "none"] = "none"
    document_end: Literal["eos", "none"] = "eos"
    engine: Literal["auto", "gigatoken", "tokenizers"] = "auto"
    """auto: gigatoken where it agrees with the reference on a sample of the corpus, else tokenizers."""
    clean: CleanConfig = CleanConfig()
    deduplicate: bool = True
    """Drop exact copies of a document, across all files of a stream."""
    near_duplicates: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Drop a document whose characters (in 5-grams) are at least this similar, by MinHash, to another's of its stream, or to those of a
    document that any stream validates on; 0.8 is usual. None: keep them."""
    shard_bytes: Positive = 16 << 20
    """Source bytes in one shard: the unit of work, of reuse, and of what a killed packer does again."""
    validation_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of documents held out by hash, for streams without `held_out` files."""


class EarlyStopConfig(Section):
    """End training before its last step when the mean bits per byte of the `new` streams' held-out blocks fall no more."""

    patience: Positive = 3
    """Measurements without a gain after which training ends; there is one every `validate_every` steps, the first before step 1."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Bits per byte below the best so far from which on a measurement is a gain."""


class TrainConfig(Section):
    steps: Positive | None = None
    """Optimizer steps. Give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the largest stream, counted in blocks and weighed like the mix. Give this or `steps`."""
    global_batch_blocks: Positive = 16
    """Blocks in one optimizer step, whatever the number of workers."""
    micro_batch_blocks: Positive = 4
    """Blocks one worker holds in memory at a time."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    embedding_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """For trained embeddings and head. None: the same as learning_rate."""
    rate_factors: dict[Pattern, Annotated[float, Field(gt=0)]] = {}
    """Multiples of the rate for parameters by regular expressions that match their whole names; where several match, their product."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """wsd: warm up, stay at the peak, fall in the last `decay_share` of the steps."""
    warmup_share: Share = 0.05
    """Share of the steps in which the rate rises from zero."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """In place of `warmup_share`. A run with the schedule `constant` or `wsd` can then be made longer and goes on from its checkpoints."""
    decay_share: Share = 0.2
    """With `wsd`: share of the steps, at the end, in which the rate falls."""
    final_rate_share: Share = 0.1
    """Rate at the last step, as a share of learning_rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Precision = "float32"
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What the workers share out: nothing, optimizer states (1), gradients too (2), weights too (3). With bfloat16, 0 is done as 1; in
    float32, one worker alone does without, unless something is offloaded."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """optimizer: ZeRO keeps the optimizer state in CPU memory. all: the weights too, with zero_stage 3."""
    lora: LoraConfig | None = LoraConfig()
    """None: all parameters are trained, but for what `freeze` names."""
    freeze: FreezeConfig | None = None
    """Without LoRA: parts that stay as they are, and out of the checkpoints."""
    embeddings: Literal["none", "new_rows", "all"] = "all"
    """With LoRA: also train the input embeddings and the output head, only the rows that `vocab` adds to them (the others stay bit for bit,
    and cost no optimizer state), or neither."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """torch.compile: quicker steps, after a minute or more at each start. Not with zero_stage 3, nor gradient_checkpointing."""
    fused_loss: Switch = "auto"
    """Head and loss in one kernel, which never holds all logits: Liger's (`pip install liger-kernel`), on GPUs, with the causal objective
    and a plain head. It stays only if its first loss is within 1e-4 of the plain one (bfloat16: 2e-3). auto: where all this is so. on:
    refuse to train without it. metrics.jsonl says which it is."""
    start: Literal["auto", "with_packing", "after_packing"] = "auto"
    """with_packing: begin on the first packed blocks, while the rest is still packed; needs `steps` and a CPU beside the workers'.
    auto: do so for a corpus of 256 MiB and more where that is possible."""
    trace_blocks: bool = False
    """Write the place of every consumed block to trace/rank_<n>.jsonl: which texts were in a step, and proof that none came twice."""
    log_every: Positive = 5
    """Steps between rows of metrics.jsonl, of TensorBoard's copy in tensorboard/, and of the gauges in Ray's metrics."""
    trackers: list[Literal["wandb", "mlflow"]] = []
    """Where the same rows go as well. Their packages are yours to install, their server and key to set as they ask (WANDB_API_KEY,
    MLFLOW_TRACKING_URI); project or experiment have the run's name."""
    validate_every: Positive = 100
    """Steps between measurements of bits per byte on the held-out blocks."""
    validation_blocks: Positive = 64
    """Blocks of each stream in one such measurement."""
    early_stop: EarlyStopConfig | None = None
    """None: train all steps."""
    checkpoint_every: Positive = 100
    keep_checkpoints: Positive = 2
    """The last so many stay."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """Beside them, so many with the fewest bits per byte at their own step: the mean over the `new` streams. Only a step that is in the
    rhythm of `validate_every` too has a measurement. Training goes on from the last one, and the last one is exported."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}; set exactly one of the two")
        if self.micro_batch_blocks > self.global_batch_blocks:
            raise ValueError(
                f"micro_batch_blocks {self.micro_batch_blocks} exceeds global_batch_blocks {self.global_batch_blocks}; lower the first"
            )
        if self.embeddings == "new_rows" and self.lora is None:
            raise ValueError("embeddings is new_rows but lora is null, so all rows would be trained; add lora, or set embeddings: all")
        if self.freeze is not None and self.lora is not None:
            raise ValueError("freeze is set beside lora, which freezes the whole base; set lora: null, or choose layers by lora.targets")
        if self.schedule == "wsd" and self.warmup_steps is None and self.warmup_share + self.decay_share > 1:
            raise ValueError(f"warmup_share {self.warmup_share} and decay_share {self.decay_share} exceed 1 together; lower one of them")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3, and zero_stage is 0; set zero_stage: 2")
        if self.compile and (self.zero_stage == 3 or self.gradient_checkpointing):
            raise ValueError(
                f"compile is true, zero_stage {self.zero_stage} and gradient_checkpointing {self.gradient_checkpointing}; it works with "
                "zero_stage 0, 1 and 2 without gradient_checkpointing: set compile: false, or change these"
            )
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f"offload: all needs zero_stage 3, and zero_stage is {self.zero_stage}; set zero_stage: 3")
        return self

    def stage_for(self, workers: int) -> int:
        """The ZeRO stage that DeepSpeed is asked for. A worker alone has nobody to share with, and is faster without ZeRO's copies. With
        bfloat16 it is 1 at least: otherwise DeepSpeed keeps the float32 masters where no checkpoint can reach them."""
        if self.precision == "bfloat16":
            return max(self.zero_stage, 1)
        return self.zero_stage if workers > 1 or self.offload != "none" else 0


class ResourcesConfig(Section):
    """What the run asks of the cluster. Changing it redoes nothing."""

    workers: Positive | tuple[int, int] = 1
    """Training workers: a number, or [least, most] to use what is there, go on with fewer when a node dies, and take up nodes that come."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    pack_tasks: Positive = 2
    """Files packed at the same time."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times training restarts by itself after a worker or node died. Nodes that are taken away with notice or taken up are not counted."""
    start_timeout_s: Positive = 600
    """How long to wait for room for the least workers, also after a loss; 30 s where too few nodes are left and none can come."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.workers, tuple) and not 0 < self.workers[0] <= self.workers[1]:
            raise ValueError(f"workers {list(self.workers)} must be [least, most] with 0 < least <= most; swap or raise them")
        return self

    @property
    def max_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def min_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers


class GenerateConfig(Section):
    """How text is sampled, in `evaluate` and by `zhlm generate`."""

    max_new_tokens: Positive = 64
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    seed: int = 1


class EvaluateConfig(Section):
    documents: Positive = 200
    """Held-out documents measured per stream."""
    prompts: list[str] = []
    """Each is continued by the base and by the adapted model, side by side."""
    generate: GenerateConfig = GenerateConfig()
    forgetting_alert_share: Share = 0.05
    """The report warns when bits per byte of an `old` stream rise by more than this share."""


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its folder."""
    seed: int = 7
    storage: StorageConfig = StorageConfig()
    sample: SampleConfig | None = None
    base: BaseConfig
    streams: Annotated[list[StreamConfig], Field(min_length=1)]
    vocab: VocabConfig | None = None
    """None: the tokenizer of the base is used as it is."""
    pack: PackConfig = PackConfig()
    objective: Objective = CausalConfig()
    """What the model learns to predict: causal, masked, span_corruption or prefix. A name alone, or a section with `name` and settings."""
    train: TrainConfig
    resources: ResourcesConfig = ResourcesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [s.name for s in self.streams]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(f"streams: the name {doubled[0]!r} is used twice; give each stream its own name")
        if not any(s.role == "new" for s in self.streams):
            raise ValueError("streams: none has role `new`; mark the language to learn with role: new")
        if self.base.from_scratch and self.train.lora is not None:
            raise ValueError("base.from_scratch draws random weights, and train.lora would leave them so; set train.lora: null")
        if self.vocab is not None and self.train.lora is not None and self.train.embeddings == "none":
            raise ValueError(
                "vocab adds rows but train.embeddings is none, so they would never be trained; set train.embeddings: all or new_rows, or "
                "vocab: null"
            )
        if self.vocab is not None and self.train.freeze is not None and self.train.freeze.embeddings:
            raise ValueError("vocab adds rows but train.freeze.embeddings is true, so they would never be trained; set one of them to null")
        if self.vocab is None and self.train.embeddings == "new_rows":
            raise ValueError("train.embeddings is new_rows but vocab is null, so there are none; set train.embeddings: all or none")
        self._check_sample()
        return self

    def _check_sample(self) -> None:
        made = self.sample or SampleConfig()
        if self.base.model.startswith("sample://") and made.base is None:
            raise ValueError(f"base.model is {self.base.model} but sample.base is null; add a sample.base section or name a real model")
        paths = [p for s in self.streams for p in [*s.paths, *s.held_out]] + (made.base.paths if made.base else [])
        wanted = next((p for p in paths if p.startswith("sample://")), None)
        if wanted and made.corpus is None:
            raise ValueError(f"the path {wanted} needs the sample corpus but sample.corpus is null; add a sample.corpus section")
