"""Options of every stage: one frozen dataclass a stage, checked in one place.

The command line, the Python functions and the manifest all read these classes, so an option has one
name, one default and one description.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mllm_selector.errors import UsageError
from mllm_selector.inputs import ImageFolder, Input, Inputs
from mllm_selector.metrics import METRICS, NLL, Metrics, Variant
from mllm_selector.options import StageOptions, cli_name, option
from mllm_selector.values import (
    Amount,
    AutoCount,
    Columns,
    Files,
    Limits,
    Settings,
    Shard,
)

__all__ = [
    "Amount",
    "AutoCount",
    "Columns",
    "ExportOptions",
    "Files",
    "ImageFolder",
    "IngestOptions",
    "Input",
    "Inputs",
    "Limits",
    "Metrics",
    "PickOptions",
    "ReportOptions",
    "ScoreOptions",
    "SeedOptions",
    "Settings",
    "Shard",
    "StageOptions",
    "cli_name",
    "default_within",
    "option",
]


RAY_HELP = (
    "Read the inputs of the pool, and score, on a Ray cluster: HOST:PORT of its head, auto for the one that "
    "this machine is in, or local to start one on this machine alone."
)


def _check_address(ray: str | None) -> None:
    """Refuse the address of a Ray client, which stands outside of the cluster."""
    if ray is not None and "://" in ray:
        msg = (
            f"--ray: {ray} is no HOST:PORT; run this command on a node of the cluster (with 'ray job "
            "submit', for one), where the run directory is"
        )
        raise UsageError(msg)


@dataclass(frozen=True, kw_only=True)
class IngestOptions(StageOptions):
    """How the pool is read."""

    pool: Inputs = option(
        help="The pool as you have it: LLaVA, ShareGPT or messages as a JSON array or JSON lines, plain or "
        "as gzip or zstd; Parquet; Arrow; a Hugging Face datasets folder; WebDataset tars. A file, several, "
        "a folder, or a pattern in quotes. NAME=PATH gives all samples of an input the source NAME.",
        metavar="POOL",
        matters=False,
    )
    images: ImageFolder | None = option(
        None,
        help="Folder that the image paths of the pool are relative to, or its URL, such as "
        "s3://bucket/images.",
        metavar="DIR",
        matters=False,
    )
    check_images: str = option(
        "header",
        help="How each image is looked at: its kind, size and end (header), the picture too (decode), or "
        "only whether the file is there (none).",
        choices=("header", "decode", "none"),
    )
    max_image_pixels: int = option(
        89_478_485,
        help="Images of more pixels are set aside; scoring takes no larger ones than the default.",
        metavar="N",
    )
    format: str = option(
        "auto",
        help="Format of the pool: llava-json, llava-jsonl, sharegpt-json, sharegpt-jsonl, messages-json, "
        "messages-jsonl, parquet, arrow, datasets, webdataset, or one of an installed package; auto looks at "
        "the content.",
        metavar="FORMAT",
    )
    split: str | None = option(
        None, help="Split of a Hugging Face DatasetDict folder, where it has several.", metavar="NAME"
    )
    columns: Columns | None = option(
        None,
        help="Names of columns that are not the format's: messages, images, id, source, system, role or "
        "content, such as messages=dialogue,images=pics.",
        metavar="KIND=COLUMN,...",
    )
    source: str | None = option(
        None,
        help="Source name for samples that carry none; by default the first folder of their image, "
        "else the pool's file name.",
        metavar="NAME",
    )
    duplicate_ids: str = option(
        "rename",
        help="What becomes of a sample with the id of an earlier one: it gets a number behind its id (its "
        "record stays as it is), or is set aside.",
        choices=("rename", "reject"),
    )
    turn_order: str = option(
        "alternating",
        help="Whether questions and answers must alternate, a system prompt only first, as most chat "
        "templates ask for.",
        choices=("alternating", "any"),
    )
    missing_marks: str = option(
        "auto",
        help="What becomes of a sample with images but no <image> mark: the marks are put before its first "
        "question, or it is set aside; auto inserts them for messages, as TRL and ms-swift do.",
        choices=("auto", "insert", "reject"),
    )
    strict: bool = option(False, help="Stop with an error at the first sample that would be set aside.")
    threads: int | None = option(
        None, help="CPU threads for computing; default all.", metavar="N", matters=False
    )
    ray: str | None = option(None, help=RAY_HELP, metavar="ADDRESS", matters=False)

    def check(self) -> None:
        """Check the reading options."""
        self.at_least("max_image_pixels", 1)
        self.at_least("threads", 1)
        _check_address(self.ray)


@dataclass(frozen=True, kw_only=True)
class SeedOptions(StageOptions):
    """How the seed model is made."""

    model: str | None = option(
        None, help="Pretrained model to tune: a directory or a hub id.", metavar="MODEL", matters=False
    )
    seed_model: Path | None = option(
        None,
        help="Use this model directory as the seed model; no fine-tuning is done.",
        metavar="DIR",
        matters=False,
    )
    seed_size: Amount | None = option(
        None,
        help="Samples to tune the seed model on, a count or a share; default 1%, but at least 512.",
        metavar="N|P%",
    )
    seed_epochs: float = option(1.0, help="Passes over the seed subset.", metavar="X")
    seed_batch_size: int = option(16, help="Samples per optimiser step.", metavar="N")
    seed_micro_batch: int = option(
        4, help="Samples per forward pass; gradients are accumulated up to the batch size.", metavar="N"
    )
    seed_learning_rate: float = option(2e-4, help="Peak of the cosine schedule.", metavar="X")
    seed_max_tokens: int = option(
        2048, help="Longer seed samples are left out of training and counted.", metavar="N"
    )
    lora_rank: int = option(16, help="Rank of the LoRA matrices.", metavar="N")
    lora_alpha: int = option(32, help="The LoRA update is scaled by this divided by the rank.", metavar="N")
    seed: int = option(0, help="Random seed of every draw.", metavar="N")
    trust_remote_code: bool = option(
        False, help="Run Python code that comes with the model. Only for models you trust."
    )

    def check(self) -> None:
        """Check the training options."""
        if self.seed_model is not None and self.model is not None:
            msg = "--model and --seed-model: give one; --seed-model DIR skips the fine-tuning of --model"
            raise UsageError(msg)
        self.at_least("seed_epochs", 0, above=True)
        self.at_least("seed_learning_rate", 0, above=True)
        for name in ("seed_batch_size", "seed_micro_batch", "seed_max_tokens", "lora_rank", "lora_alpha"):
            self.at_least(name, 1)
        self.at_least("seed", 0)
        if self.seed_batch_size % self.seed_micro_batch:
            msg = (
                f"--seed-batch-size: {self.seed_batch_size} is not a multiple of "
                f"--seed-micro-batch {self.seed_micro_batch}"
            )
            raise UsageError(msg)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(StageOptions):
    """How the seed model is made ready for scoring."""

    engine: str = option(
        "onnx",
        help="What scores: ONNX graphs made from the seed model, or PyTorch, slower, for models that "
        "cannot be exported.",
        choices=("onnx", "torch"),
    )
    precision: str = option(
        "float32",
        help="Number format of scoring; reductions are always float32. bfloat16 needs CUDA or "
        "the engine torch.",
        choices=("float32", "float16", "bfloat16"),
    )
    embedding_layer: int = option(
        -1,
        help="Layer whose hidden states become embeddings: 0 the token embeddings, 1 the first layer, -1 the "
        "last one after the final norm.",
        metavar="N",
    )


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(StageOptions):
    """How the pool is scored."""

    device: str = option(
        "auto", help="Where to score; auto takes CUDA where it works.", choices=("auto", "cpu", "cuda")
    )
    metrics: Metrics = option(
        Metrics(),
        help="What to compute besides the mean loss, with commas: "
        f"{', '.join(name for name in METRICS if name != NLL)}. "
        "visnec, ifd and miwv take a further forward pass each.",
        metavar="NAME,...",
    )
    scored_per_cluster: int | None = option(
        None,
        help="Score only this many samples of each cluster: a first pass, through the vision tower alone, "
        "embeds the inputs of all samples and makes clusters of them, and the necessity of a cluster "
        "is the mean "
        "over its scored samples. By default every sample is scored.",
        metavar="M",
    )
    cluster_count: int | None = option(
        None,
        help="Clusters that --scored-per-cluster makes; default sqrt(samples / 2), up to 10000.",
        metavar="N",
    )
    embedding: str = option(
        "all",
        help="What a sample's embedding is made of: the mean hidden state of all positions (all), of its "
        "images (image) or of its text (text), where samples without images take all in place of image; or "
        "its inputs, that is the mean token embedding of its questions and mean and maximum of its image "
        "features, before the language model.",
        choices=("all", "image", "text", "inputs"),
    )
    embedding_size: int | None = option(
        None, help="Project embeddings to this many numbers; default the model's own width.", metavar="N"
    )
    projection: str = option(
        "random",
        help="How embeddings are projected: by a seeded random matrix, which keeps distances (random), or to "
        "the directions in which a sample of the pool varies most (pca).",
        choices=("random", "pca"),
    )
    seed: int = option(0, help="Random seed of every draw.", metavar="N")
    token_budget: AutoCount = option(
        AutoCount(),
        help="Most tokens, padding included, in one batch; a longer sample forms its own. auto measures what "
        "is fastest and fits, once for a device and a model.",
        metavar="N|auto",
    )
    image_budget: AutoCount = option(
        AutoCount(),
        help="Most image tokens that the vision tower computes together; a larger image is alone.",
        metavar="N|auto",
    )
    max_tokens: int = option(8192, help="Samples longer than this are set aside with a reason.", metavar="N")
    shard_size: int = option(
        2048, help="Pool rows per score file, the unit that a killed run does not repeat.", metavar="N"
    )
    workers: int = option(
        2,
        help="Threads that load and prepare images ahead of the device; at least 16 if they come from a URL.",
        metavar="N",
        matters=False,
    )
    threads: int | None = option(
        None, help="CPU threads for computing; default all.", metavar="N", matters=False
    )
    shard: Shard | None = option(
        None,
        help="Score only this process's share, the I-th of N, for job arrays; --merge puts them together.",
        metavar="I/N",
        matters=False,
    )
    merge: bool = option(
        False, help="Score nothing; put together what the processes with --shard scored.", matters=False
    )
    ray: str | None = option(None, help=RAY_HELP, metavar="ADDRESS", matters=False)
    ray_gpus: float | None = option(
        None,
        help="GPUs of each scorer on Ray, also a share of one; default 1 where there are GPUs. Without a GPU "
        "a scorer takes --threads CPUs, by default 1.",
        metavar="X",
        matters=False,
    )
    ray_scorers: int | None = option(
        None,
        help="Most scorers on Ray at a time; default as many as the cluster holds.",
        metavar="N",
        matters=False,
    )

    @property
    def embeds_inputs(self) -> bool:
        """Whether embeddings are those of the inputs."""
        return self.embedding == "inputs" or self.scored_per_cluster is not None

    def check(self) -> None:
        """Check the scoring options."""
        if self.shard is not None and self.merge:
            msg = "--shard and --merge: give one; --merge comes when all shards are done"
            raise UsageError(msg)
        if self.shard is not None and self.ray is not None:
            msg = "--shard and --ray: give one; Ray shares the parts out by itself"
            raise UsageError(msg)
        if self.ray is None and (self.ray_gpus is not None or self.ray_scorers is not None):
            msg = "--ray-gpus and --ray-scorers need --ray ADDRESS, such as --ray auto"
            raise UsageError(msg)
        _check_address(self.ray)
        for name in (
            "scored_per_cluster",
            "cluster_count",
            "embedding_size",
            "max_tokens",
            "shard_size",
            "workers",
            "threads",
            "ray_scorers",
        ):
            self.at_least(name, 1)
        self._check_clusters()
        self.at_least("ray_gpus", 0)
        self.at_least("seed", 0)

    def _check_clusters(self) -> None:
        if self.scored_per_cluster is None:
            if self.cluster_count is not None:
                msg = (
                    "--cluster-count is for --scored-per-cluster M, which is not given; the groups of "
                    "a pool that is scored whole are made by pick --group-count"
                )
                raise UsageError(msg)
            return
        if Variant.ONE_SHOT in self.metrics.variants:
            msg = (
                "--metrics miwv: a sample's example is the nearest scored one, so every sample has to "
                "be scored; leave out miwv or --scored-per-cluster"
            )
            raise UsageError(msg)
        if self.embedding not in ("all", "inputs"):
            msg = (
                f"--embedding {self.embedding}: with --scored-per-cluster, embeddings are those of the "
                "inputs; leave it out"
            )
            raise UsageError(msg)


@dataclass(frozen=True, kw_only=True)
class PickOptions(StageOptions):
    """How the subset is chosen."""

    budget: Amount = option(
        help="Samples to choose: a count such as 5000 or a share such as 10%.", metavar="N|P%"
    )
    out: Path | None = option(
        None, help="Also write the subset here, in the format of the pool.", metavar="FILE", matters=False
    )
    necessity: str = option(
        NLL,
        help="Metric of the scores that is the necessity; samples without it are no candidates. All but nll "
        "have to be asked for by score --metrics.",
        choices=tuple(METRICS),
    )
    method: str = option(
        "grouped",
        help="How samples are chosen: one of the methods listed below. The options --groups, --share, "
        "--within, --smooth, --trim and --skip-duplicates are those of grouped.",
        metavar="NAME",
    )
    param: Settings | None = option(
        None,
        help="Parameter of the method, as listed below. May be given several times.",
        metavar="NAME=VALUE",
    )
    scores: Files | None = option(
        None,
        help="More scores of the samples for methods that need them: Parquet, CSV or JSON lines with "
        "a column id and columns of numbers. May be given several times.",
        metavar="FILE",
        matters=False,
    )
    groups: str = option(
        "cluster",
        help="What a group is: k-means on the embeddings, score strata, sources, or random.",
        choices=("cluster", "necessity", "source", "random"),
        of_method=True,
    )
    group_count: int | None = option(
        None,
        help="Number of groups, of grouped and of methods that make clusters; default sqrt(samples / 2), up "
        "to 10000 (strata and random groups: 10).",
        metavar="N",
        of_method=True,
    )
    share: str = option(
        "size-necessity",
        help="What a group's share of the budget is proportional to.",
        choices=("size-necessity", "necessity", "size", "equal"),
        of_method=True,
    )
    within: str | None = option(
        None,
        help="How samples are chosen inside a group; default facility-location in clusters, uniform in other "
        "groups.",
        choices=("uniform", "top", "weighted", "k-center", "facility-location", "middle"),
        of_method=True,
    )
    smooth: int | None = option(
        None,
        help="Let the necessity of a sample be the mean over its N nearest neighbours, without the highest "
        "and lowest tenth; the time grows with the square of the pool.",
        metavar="N",
        of_method=True,
    )
    source_floor: Limits | None = option(
        None,
        help="Least samples from a source: a count or a share of the budget; the name * stands for every "
        "other source. May be given several times.",
        metavar="NAME=N|P%",
    )
    source_ceiling: Limits | None = option(
        None,
        help="Most samples from a source, given in the same way; 0 leaves it out.",
        metavar="NAME=N|P%",
    )
    trim: float = option(
        0.0,
        help="Share of the highest necessity in each group that is never chosen (often wrong labels).",
        metavar="X",
        of_method=True,
    )
    seed_samples: str = option(
        "compete",
        help="Seed samples may be chosen like any other (compete), are all taken and count in the budget "
        "(include), or are never chosen (exclude).",
        choices=("compete", "include", "exclude"),
    )
    skip_duplicates: float | None = option(
        None,
        help="Skip samples whose embedding has at least this cosine with an already chosen one.",
        metavar="COSINE",
        of_method=True,
    )
    order: str = option("pool", help="Order of the written subset.", choices=("pool", "chosen"))
    seed: int = option(0, help="Random seed of every draw.", metavar="N")
    threads: int | None = option(
        None, help="CPU threads for computing; default all.", metavar="N", matters=False
    )

    def check(self) -> None:
        """Check the picking options."""
        for name in ("group_count", "smooth", "threads"):
            self.at_least(name, 1)
        self.at_least("seed", 0)
        if not 0 <= self.trim < 1:
            msg = f"--trim: {self.trim} is not a share; it must be at least 0 and below 1"
            raise UsageError(msg)
        if self.skip_duplicates is not None and not 0 < self.skip_duplicates <= 1:
            msg = f"--skip-duplicates: {self.skip_duplicates} is not a cosine above 0 and up to 1"
            raise UsageError(msg)


def default_within(groups: str) -> str:
    """Return how samples are chosen inside groups of a kind unless asked for otherwise."""
    return "facility-location" if groups == "cluster" else "uniform"


@dataclass(frozen=True, kw_only=True)
class ReportOptions(StageOptions):
    """What the report shows."""

    gallery: int = option(24, help="Samples in each gallery of the report.", metavar="N")
    hourly_price: float | None = option(
        None,
        help="Price of this machine an hour, in any currency: the report then says what each stage cost.",
        metavar="X",
    )

    def check(self) -> None:
        """Check the report options."""
        self.at_least("gallery", 0)
        self.at_least("hourly_price", 0)
