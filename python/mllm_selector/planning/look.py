"""Looking at a run that is planned: what is done, what is known, what has to be probed."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mllm_selector import families, pipeline
from mllm_selector.config import (
    ExportOptions,
    IngestOptions,
    PickOptions,
    ScoreOptions,
    SeedOptions,
    StageOptions,
)
from mllm_selector.engine import Engine
from mllm_selector.errors import MllmSelectorError, ScoreError, UsageError
from mllm_selector.families.base import Family
from mllm_selector.planning.estimates import Plan, Work, break_even, estimate
from mllm_selector.planning.made_up import probe_clusters, probe_pick, probe_report
from mllm_selector.planning.probes import parameters, probe_ingest, probe_score, probe_training
from mllm_selector.planning.rates import Rate, Rates, of_run
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress, SilentProgress
from mllm_selector.reporting.overview import products
from mllm_selector.rundir import RunDirectory
from mllm_selector.sampling import cluster_count
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.budget import budget_memory
from mllm_selector.scoring.opening import open_engine, open_torch
from mllm_selector.scoring.sweeps import first_variants
from mllm_selector.stages.seed import seed_count
from mllm_selector.workflow import STAGES

__all__ = ["look"]


def look(
    given: Mapping[str, Any],
    *,
    run_dir: Path | None = None,
    samples: int | None = None,
    devices: int = 1,
    rates_of: Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Plan a run: what each stage would do and take. Nothing is written but into a temporary folder.

    Parameters
    ----------
    given : mapping
        Options by name, as for `mllm_selector.select`. Without ``pool``, `samples` and `rates_of` are needed.
    run_dir : Path, optional
        The run directory: what is done there is not done again, and its records are rates.
    samples : int, optional
        Samples of the pool, in place of those that the pool has.
    devices : int
        Devices that score side by side.
    rates_of : Path, optional
        A run directory whose records tell the rates.
    progress : Progress, optional
        What to report to.

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        As `mllm_selector.select`, without the work; or if there is neither a pool nor rates.
    PoolError, ModelError
        If the pool or the model cannot be read.
    """
    if "pool" not in given and (samples is None or rates_of is None):
        msg = (
            "POOL is missing: name the pool; or give --samples N with --rates RUN, a run directory whose "
            "records tell how fast this goes"
        )
        raise UsageError(msg)
    stages = [name for name in STAGES if name != "ingest" or "pool" in given]
    options = pipeline.build_options(dict(given), stages)
    with tempfile.TemporaryDirectory(prefix="mllm-selector-plan-") as temporary:
        return _Look(options, run_dir, samples, devices, rates_of, Path(temporary), progress).plan()


class _Look:
    """One planning."""

    def __init__(
        self,
        options: dict[str, StageOptions],
        run_dir: Path | None,
        samples: int | None,
        devices: int,
        rates_of: Path | None,
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self._has_pool = "ingest" in options
        self._options = pipeline.checked(options) if self._has_pool else options
        self._given_samples, self._devices, self._folder = samples, devices, folder
        self._progress = progress or SilentProgress()
        self._run = RunDirectory(folder / "new" if run_dir is None else run_dir)
        self._run.check_free()
        self._room = run_dir
        self._run.load()
        self._rates = of_run(self._run, "this run")
        if rates_of is not None:
            self._rates.add(_rates_of(rates_of))
        self._notes: list[str] = []

    def plan(self) -> Plan:
        """Look at everything and put the plan together."""
        states = dict.fromkeys(STAGES, "runs")
        if self._has_pool:
            states |= pipeline.outlook(self._run, self._options)
        pool, total, sources, is_counted = self._pool(states["ingest"] == "done")
        work = self._work(states, total)
        self._forget_other_scoring()
        self._model(pool, states, total)
        work = self._made_up(work, sources)
        stages = estimate(work, self._rates)
        free = shutil.disk_usage(_existing(self._room)).free if self._room is not None else None
        return Plan(
            total,
            is_counted,
            work.chosen,
            self._devices,
            stages,
            self._notes,
            break_even(work, self._rates),
            free,
        )

    def _pool(self, is_done: bool) -> tuple[Pool | None, int, int, bool]:
        """Return what there is of the pool, its samples and sources, and whether all of it was counted."""
        total = self._given_samples
        if is_done:
            counts = self._run.need("ingest").counts
            pool = Pool.of(self._run)
            return pool, total or counts["samples"], len(counts["sources"]), total is None
        of_ingest = self._options.get("ingest")
        if not isinstance(of_ingest, IngestOptions):
            assert total is not None
            return None, total, 1, True
        self._progress.note("plan    reading the pool, 20 s at most")
        read = probe_ingest(of_ingest, self._folder)
        self._rates.stages["ingest"] = read.rate
        self._rates.input_bytes = sum(path.stat().st_size for path in of_ingest.pool.paths) / read.samples
        if read.rejected:
            self._notes.append(f"{read.rejected:,} records would be set aside; rejected.jsonl will say why")
        if read.share < 1:
            self._notes.append(f"the number of samples is extrapolated from {read.share:.1%} of the input")
        pool = Pool.open(read.pool, of_ingest.images, of_ingest.pool.paths)
        return pool, total or read.samples, len(read.sources), total is None and read.share == 1

    def _work(self, states: dict[str, str], total: int) -> Work:
        of_seed, of_score, of_pick = (self._options[name] for name in ("seed", "score", "pick"))
        assert isinstance(of_seed, SeedOptions)
        assert isinstance(of_score, ScoreOptions)
        assert isinstance(of_pick, PickOptions)
        chosen = of_pick.budget.of(total)
        if chosen > total:
            msg = f"--budget: {of_pick.budget} is more than the {total} samples of the pool"
            raise UsageError(msg)
        trained = 0
        if of_seed.seed_model is None:
            trained = max(1, round(seed_count(of_seed.seed_size, total) * of_seed.seed_epochs))
            trained = of_seed.seed_batch_size * math.ceil(trained / of_seed.seed_batch_size)
        left = total
        if states["score"] == "goes on":
            first = "part-" if of_score.scored_per_cluster is None else "embedding-"
            parts = [part for part in STAGES["score"].partial(self._run) if part.name.startswith(first)]
            left = max(0, total - len(parts) * of_score.shard_size)
        readings = 1 + len(of_score.metrics.variants) if of_score.scored_per_cluster is None else 1
        return Work(total, chosen, trained, readings, self._devices, states, left, compared=0.0)

    def _forget_other_scoring(self) -> None:
        """Leave out a rate of scoring every sample where only some are to be scored, or the reverse."""
        of_score = self._options["score"]
        assert isinstance(of_score, ScoreOptions)
        is_drawn = of_score.scored_per_cluster is not None
        if "score" in self._rates.stages and self._rates.is_drawn != is_drawn:
            del self._rates.stages["score"]
            self._rates.embedding_size = None
            scored = "every sample" if is_drawn else "only some samples"
            self._rates.unknown["score"] = f"the records are of a run that scored {scored}"

    def _model(self, pool: Pool | None, states: dict[str, str], total: int) -> None:
        """Measure training and scoring where no record tells, as far as a model is at hand."""
        of_seed, of_export, of_score = (self._options[name] for name in ("seed", "export", "score"))
        assert isinstance(of_seed, SeedOptions)
        assert isinstance(of_export, ExportOptions)
        assert isinstance(of_score, ScoreOptions)
        if pool is None:
            return
        if states["export"] == "done" and states["score"] != "done":
            self._try("score", lambda: self._exported(pool, of_score, total))
        name = of_seed.seed_model or of_seed.model
        folder = Path(name).expanduser() if name else None
        if folder is None or not folder.is_dir():
            why = f"{name} is not a folder on this machine, so nothing was tried; name one, or --rates RUN"
            for stage in ("seed", "export", "score"):
                self._rates.unknown.setdefault(stage, why)
            return
        self._try("score", lambda: self._untuned(pool, folder, of_export, of_score, total))
        if of_seed.model is not None:
            self._try("seed", lambda: probe_training(of_seed, pool, self._folder))
        why = "it is known when it has run once; --rates RUN tells of another run"
        self._rates.unknown["export"] = why
        if of_export.engine == "onnx":
            # In half precision there are float32 graphs besides.
            each = 4 if of_export.precision == "float32" else 6
            self._rates.export_bytes = each * parameters(folder)

    def _try(self, stage: str, probe: Callable[[], Rate]) -> None:
        if stage in self._rates.stages:
            return
        self._progress.note(f"plan    trying '{stage}' on a little of the work")
        try:
            self._rates.stages[stage] = probe()
        except (MllmSelectorError, OSError) as error:
            self._rates.unknown[stage] = str(error)

    def _exported(self, pool: Pool, options: ScoreOptions, total: int) -> Rate:
        trust = bool(self._run.need("seed").options.get("trust_remote_code", False))
        family = families.load(self._run.onnx / "processor", trust_remote_code=trust)
        wanted = options.metrics.of_scorer
        engine = open_engine(self._run, family, options.device, options.threads, outputs=wanted)
        budget = budget_memory(self._run, engine, options).recall()
        return self._probed(engine, family, pool, options, budget, f"with {engine.provider}", total)

    def _untuned(
        self, pool: Pool, folder: Path, export: ExportOptions, options: ScoreOptions, total: int
    ) -> Rate:
        of_seed = self._options["seed"]
        assert isinstance(of_seed, SeedOptions)
        family = families.load(folder, trust_remote_code=of_seed.trust_remote_code)
        engine = open_torch(
            family,
            folder,
            export.precision,
            options.device,
            options.threads,
            trust_remote_code=of_seed.trust_remote_code,
        )
        note = "by PyTorch" + ("; ONNX Runtime will differ" if export.engine == "onnx" else "")
        return self._probed(engine, family, pool, options, None, note, total)

    def _probed(
        self,
        engine: Engine,
        family: Family,
        pool: Pool,
        options: ScoreOptions,
        budget: BatchBudget | None,
        what: str,
        total: int,
    ) -> Rate:
        is_drawn = options.scored_per_cluster is not None
        self._rates.readings = 1 if is_drawn else len(first_variants(options.metrics))
        width = engine.input_embedding_size if options.embeds_inputs else engine.embedding_size
        if width is None:
            msg = (
                "the graphs were made by an earlier version and have no embedding of the inputs; "
                "export them anew"
            )
            raise ScoreError(msg)
        self._rates.embedding_size = options.embedding_size or width
        rate = probe_score(engine, family, pool, options, budget, what, total)
        if not is_drawn:
            return rate
        return dataclasses.replace(
            rate,
            fixed=probe_clusters(options, total, self._rates.embedding_size),
            basis=f"{rate.basis}; and making clusters of made-up samples",
            made_up=True,
        )

    def _made_up(self, work: Work, sources: int) -> Work:
        """Measure what made-up embeddings tell of, and say what the report has to compare."""
        of_score, of_pick = self._options["score"], self._options["pick"]
        assert isinstance(of_score, ScoreOptions)
        assert isinstance(of_pick, PickOptions)
        width = self._rates.embedding_size
        if width is None:
            unknown = dict.fromkeys(("pick", "report"), "the size of embeddings is not known")
            self._rates.unknown |= unknown
            self._rates.stages.pop("report", None)
            return work
        self._rates.stages.pop("pick", None)
        clusters = None
        if of_score.scored_per_cluster is not None:
            clusters = cluster_count(work.samples, of_score.cluster_count)
        self._try("pick", lambda: probe_pick(of_pick, work.samples, work.chosen, width, sources, clusters))
        self._try("report", lambda: probe_report(work.samples, work.chosen, width))
        return dataclasses.replace(work, compared=products(work.samples, work.chosen, width))


def _rates_of(path: Path) -> Rates:
    run = RunDirectory(path)
    if not run.manifest.exists():
        msg = f"--rates: {path} is no run directory; name one with finished stages"
        raise UsageError(msg)
    run.load()
    return of_run(run, str(path))


def _existing(path: Path) -> Path:
    """Return the nearest folder that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
