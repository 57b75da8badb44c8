"""Runs the stages in order, skips finished ones, and refuses to mix runs.

A stage's key is a hash of everything that decides its output: its options, the content of its input
files and the keys of the stages before it. A finished stage with the same key is not run again. A
finished or half-finished stage with another key holds work worth hours, so it is never overwritten,
save for `pick` and `report`, which take seconds.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_selector import families, formats, methods
from mllm_selector.checksums import Damage
from mllm_selector.config import (
    ExportOptions,
    ImageFolder,
    IngestOptions,
    Inputs,
    PickOptions,
    ScoreOptions,
    SeedOptions,
    StageOptions,
    cli_name,
)
from mllm_selector.errors import PoolError, RunDirectoryError, UsageError
from mllm_selector.families.loading import check_exportable
from mllm_selector.limits import check_limits
from mllm_selector.outputs import check_output
from mllm_selector.progress import Progress, SilentProgress
from mllm_selector.resources import peak_memory_mb, reset_peak_memory
from mllm_selector.rundir import (
    RunDirectory,
    StageRecord,
    fingerprint,
    fingerprint_inputs,
    of_files,
    stage_key,
    state_of_inputs,
)
from mllm_selector.selection import Selection
from mllm_selector.stages import score
from mllm_selector.stores import ImageStore
from mllm_selector.training import check_model_directory
from mllm_selector.workflow import STAGES

__all__ = ["build_options", "checked", "outlook", "run_stages", "select"]


def build_options(given: dict[str, Any], stages: list[str]) -> dict[str, StageOptions]:
    """Sort options by stage and check each stage's.

    Parameters
    ----------
    given : dict
        Option names and values; an option that several stages share goes to each.
    stages : list of str
        The stages to run.

    Returns
    -------
    dict
        The checked options of each stage.

    Raises
    ------
    UsageError
        If a name is unknown, a required option is missing, or a value cannot work.
    """
    fields = {stage: {f.name: f for f in dataclasses.fields(STAGES[stage].options)} for stage in stages}
    known = {name for of_stage in fields.values() for name in of_stage}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            msg = f"unknown option {name}{hint}"
            raise UsageError(msg)
    built = {}
    for stage, of_stage in fields.items():
        for name, field in of_stage.items():
            if name not in given and field.default is dataclasses.MISSING:
                msg = f"{cli_name(name)} is missing: {field.metadata['help']}"
                raise UsageError(msg)
        built[stage] = STAGES[stage].options(**{n: given[n] for n in of_stage if n in given})
    return built


def run_stages(directory: Path, options: dict[str, StageOptions], progress: Progress | None = None) -> None:
    """Run stages in order in a run directory, skipping those that are done.

    Parameters
    ----------
    directory : Path
        The run directory.
    options : dict
        Options of each stage to run, as `build_options` returns them.
    progress : Progress, optional
        What to report to; silent by default.

    Raises
    ------
    UsageError
        If the options cannot work, or the run directory belongs to another pool, model or set of options.
    MllmSelectorError
        If a stage fails; what was finished before stays, and the same call goes on from there.
    """
    progress = progress or SilentProgress()
    of_score = options.get("score")
    if isinstance(of_score, ScoreOptions) and of_score.shard is not None:
        if len(options) > 1:
            msg = (
                "--shard: only 'mllm-selector score' can be shared out; run the other stages before and after"
            )
            raise UsageError(msg)
        _run_shard(directory, of_score, progress)
        return
    options = checked(options)
    with RunDirectory(directory) as run:
        if run.manifest_problem is not None:
            progress.note(f"{run.manifest} {run.manifest_problem}; made again from the records of its stages")
            run.save()
        _check_out(run, options)
        for name, of_stage in options.items():
            _run_stage(run, name, of_stage, progress)
            if isinstance(of_stage, PickOptions) and of_stage.out is not None:
                Selection.load(run.path).write(of_stage.out)
            if name == "ingest" and "pick" in options:
                _check_budget(run, options["pick"])


def select(
    pool: str | Path | Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]],
    *,
    budget: str | float,
    run_dir: str | Path,
    model: str | Path | None = None,
    images: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Selection:
    """Choose the part of a pool worth training on: the whole method in one call.

    Seed fine-tuning, ONNX export, necessity scoring of every sample and necessity-based grouped
    sampling (MLLM-Selector, arXiv 2503.20502). A call that was killed goes on where it stopped when it
    is made again with the same arguments.

    Parameters
    ----------
    pool : str, Path, sequence or mapping
        The pool: LLaVA, ShareGPT or messages as a JSON array or JSON lines, plain or compressed; Parquet,
        Arrow, a Hugging Face datasets folder or WebDataset tars. Several files of one format are one pool, in
        the order given, and so are those of a folder; a text may be a pattern such as ``data/*.jsonl``. A
        mapping gives all samples of an input the source that is its key.
    budget : str, int or float
        Samples to choose: a count (``5000``) or a share (``"10%"``, ``0.1``).
    run_dir : str or Path
        Folder for everything that the run computes.
    model : str or Path, optional
        Pretrained model to tune: a directory or a hub id. Give either this or ``seed_model``.
    images : str or Path, optional
        Folder that the image paths of the pool are relative to, or its URL, such as ``s3://bucket/images``.
    out : str or Path, optional
        Also write the subset here, in the format of the pool.
    progress : Progress, optional
        What to report to; silent by default.
    **options
        Any other option of the command line, by its name (``mllm-selector select --help``).

    Returns
    -------
    Selection
        The chosen rows with their ids, necessity and groups.

    Raises
    ------
    UsageError
        If an argument cannot work, or the run directory belongs to another pool, model or set of options.
    PoolError, ModelError, ExportError, ScoreError
        If a stage fails; what was finished before stays.
    """
    paths = {"pool": pool, "images": images, "out": out}
    given: dict[str, Any] = {name: path for name, path in paths.items() if path is not None}
    given |= {"budget": budget, **options}
    if model is not None:
        given["model"] = str(model)
    run_stages(Path(run_dir), build_options(given, list(STAGES)), progress)
    return Selection.load(Path(run_dir))


def checked(options: dict[str, StageOptions]) -> dict[str, StageOptions]:
    """Put the files of folders into the options, and fail on what can be known before anything is computed.

    Raises
    ------
    UsageError, ModelError
        If the options cannot work.
    """
    options = _with_files(options)
    _check_inputs(options)
    return options


def outlook(run: RunDirectory, options: dict[str, StageOptions]) -> dict[str, str]:
    """Say what would become of each stage.

    Parameters
    ----------
    run : RunDirectory
        With its records loaded; nothing is written.
    options : dict
        Checked options of all stages, in order.

    Returns
    -------
    dict
        ``done``, ``goes on`` or ``runs`` by the stage's name. Files of finished stages are not read.

    Raises
    ------
    UsageError
        If the run directory belongs to another pool, model or set of options.
    """
    found = dict.fromkeys(options, "runs")
    for name, of_stage in options.items():
        old = run.stages.get(name)
        if old is None:
            break
        record = _record(run, name, of_stage)
        if old.key != record.key:
            _refuse_to_mix(run, name, old, of_stage, record.inputs)
            break
        if old.state != "done":
            found[name] = "goes on" if STAGES[name].partial(run) else "runs"
            break
        found[name] = "done"
    return found


def _with_files(options: dict[str, StageOptions]) -> dict[str, StageOptions]:
    """Put the files of folders into the options, so that all that follows knows which ones were read."""
    of_ingest = options.get("ingest")
    if not isinstance(of_ingest, IngestOptions):
        return options
    of_pick = options.get("pick")
    if isinstance(of_pick, PickOptions) and of_pick.out is not None:
        _check_out_of_folders(of_pick.out, of_ingest.pool)
    files = formats.expanded(of_ingest.pool, of_ingest.split)
    return options | {"ingest": dataclasses.replace(of_ingest, pool=files)}


def _check_out_of_folders(out: Path, pool: Inputs) -> None:
    """Refuse a subset in a folder that is the pool: the same command would take it for a part of the pool."""
    for path in pool.paths:
        if path.is_dir() and out.parent.resolve() == path.resolve():
            msg = f"--out: {out} lies in {path}, all of whose files are the pool; name a file somewhere else"
            raise UsageError(msg)


def _check_inputs(options: dict[str, StageOptions]) -> None:
    """Fail on what can be known before anything is computed or written."""
    of_ingest, of_seed, of_pick = options.get("ingest"), options.get("seed"), options.get("pick")
    of_score = options.get("score")
    if isinstance(of_pick, PickOptions):
        methods.prepare(of_pick)
        if isinstance(of_score, ScoreOptions) and of_score.scored_per_cluster is not None:
            of_stage = {"necessity", "nll_sum", "answer_tokens", *of_score.metrics.names}
            methods.check_estimated(of_pick, of_stage)
        for path in of_pick.scores.paths if of_pick.scores else ():
            if not path.is_file():
                what = "is no file" if path.exists() else "does not exist"
                msg = f"--scores: {path} {what}; name a Parquet, CSV or JSON lines file"
                raise UsageError(msg)
    if isinstance(of_ingest, IngestOptions):
        for path in of_ingest.pool.paths:
            if not path.is_file():
                msg = f"pool: {path} does not exist; name a file, several, or a folder of them"
                raise UsageError(msg)
        _check_images(of_ingest.images or ImageFolder())
    if isinstance(of_seed, SeedOptions):
        chosen = of_seed.seed_model or of_seed.model
        if chosen is None:
            msg = "--model is missing: name a pretrained model to tune, or a tuned one with --seed-model"
            raise UsageError(msg)
        if of_seed.seed_model is not None:
            check_model_directory(of_seed.seed_model, "--seed-model")
        families.check(str(chosen))
        of_export = options.get("export")
        if isinstance(of_export, ExportOptions) and of_export.engine == "onnx":
            check_exportable(str(chosen), trust_remote_code=of_seed.trust_remote_code)


def _check_images(images: ImageFolder) -> None:
    if images.url is not None:
        ImageStore(images.url).open()
    elif images.path is not None and not images.path.is_dir():
        msg = f"--images: {images.path} is not a folder; name the one that image paths are relative to"
        raise UsageError(msg)


def _check_out(run: RunDirectory, options: dict[str, StageOptions]) -> None:
    """Fail before anything is chosen if the subset would be written over what is read or computed."""
    of_pick, of_ingest = options.get("pick"), options.get("ingest")
    if not isinstance(of_pick, PickOptions) or of_pick.out is None:
        return
    read: dict[str, Sequence[Path]] = {}
    if of_pick.scores is not None:
        read["a file of --scores"] = of_pick.scores.paths
    if isinstance(of_ingest, IngestOptions):
        read["the pool itself"] = of_ingest.pool.paths
    elif "ingest" in run.stages:
        read["the pool itself"] = Inputs.parse(run.stages["ingest"].options["pool"]).paths
    check_output("--out", of_pick.out, read)


def _check_budget(run: RunDirectory, options: StageOptions) -> None:
    """Fail on an impossible budget or limit before hours are spent on scoring."""
    if not isinstance(options, PickOptions):
        return
    counts = run.need("ingest").counts
    samples = counts["samples"]
    budget = options.budget.of(samples)
    if budget > samples:
        msg = f"--budget: {options.budget} is more than the {samples} samples of the pool"
        raise UsageError(msg)
    check_limits(counts["sources"], options, budget)


def _inputs(run: RunDirectory, name: str, options: StageOptions) -> dict[str, Any]:
    """Identify by content what a stage reads."""
    known = run.stages[name].inputs if name in run.stages else {}
    inputs: dict[str, Any] = {}
    before = STAGES[name].needs
    if before is not None:
        inputs[before] = run.need(before).key
    if isinstance(options, IngestOptions):
        inputs["pool"] = fingerprint_inputs(options.pool, known.get("pool"))
    if isinstance(options, PickOptions) and options.scores is not None:
        inputs["scores"] = fingerprint_inputs(Inputs.parse(list(options.scores.paths)), known.get("scores"))
    if isinstance(options, SeedOptions):
        chosen = Path(options.seed_model or options.model or "")
        is_folder = chosen.is_dir()
        inputs["model"] = fingerprint(chosen, known.get("model")) if is_folder else {"hub": str(chosen)}
        inputs["tuned"] = options.seed_model is not None
    return inputs


def _content(inputs: dict[str, Any]) -> dict[str, Any]:
    """Leave the modification times out of what identifies an input."""
    return {
        name: value.get("hash", value) if isinstance(value, dict) else value for name, value in inputs.items()
    }


def _run_stage(run: RunDirectory, name: str, options: StageOptions, progress: Progress) -> None:
    old = run.stages.get(name)
    if isinstance(options, IngestOptions) and (old is None or old.state != "done"):
        # Nothing is there that could be lost or skipped. The pool is read once, and identified by that.
        unread = {"pool": {"files": state_of_inputs(options.pool)}}
        _do_stage(run, name, options, StageRecord("running", "", options.as_json(), unread), progress)
        return
    record = _record(run, name, options)
    if old is not None and old.key != record.key:
        _refuse_to_mix(run, name, old, options, record.inputs)
    elif old is not None and old.state == "done" and not _damages(run, name, progress):
        _keep(run, name, dataclasses.replace(old, options=record.options, inputs=record.inputs))
        progress.start(name)
        progress.finish("done before")
        return
    _check_reads(run, name)
    _do_stage(run, name, options, record, progress)


def _run_shard(directory: Path, options: ScoreOptions, progress: Progress) -> None:
    """Score one process's share; what the run directory says of its stages is only read."""
    run = RunDirectory(directory)
    run.load()
    record = _record(run, "score", options)
    old = run.stages.get("score")
    if old is not None and old.key != record.key:
        _refuse_to_mix(run, "score", old, options, record.inputs)
    elif old is not None and old.state == "done":
        progress.start("score")
        progress.finish("done before")
        return
    _check_reads(run, "score")
    run.stages["score"] = record
    score.run(run, options, progress)


def _record(run: RunDirectory, name: str, options: StageOptions) -> StageRecord:
    """Return the record of a stage that is to run."""
    inputs = _inputs(run, name, options)
    return StageRecord("running", _key(name, options, inputs), options.as_json(), inputs)


def _key(name: str, options: StageOptions, inputs: dict[str, Any]) -> str:
    return stage_key(name, options.as_json(only_that_matter=True), _content(inputs))


def _identify(record: StageRecord, options: IngestOptions) -> None:
    """Enter what the inputs held when they were read; a format that does not tell has them read again."""
    hashes = record.counts.pop("input_hashes", None)
    if hashes is None:
        pool = fingerprint_inputs(options.pool)
    else:
        states = record.inputs["pool"]["files"]
        files = [state | {"hash": digest} for state, digest in zip(states, hashes, strict=True)]
        pool = of_files(options.pool, files)
    record.inputs = {"pool": pool}
    record.key = _key("ingest", options, record.inputs)


def _check_reads(run: RunDirectory, name: str) -> None:
    for damage in run.checksums.damages(STAGES[name].reads(run)):
        msg = f"{damage}; run 'select' or the stage that made it with the options of this run: it mends it"
        raise RunDirectoryError(msg)


def _damages(run: RunDirectory, name: str, progress: Progress) -> list[Damage]:
    """Look for files of a finished stage that are not whole any more, and say so."""
    damages = run.checksums.damages(STAGES[name].outputs(run))
    for damage in damages:
        progress.note(f"{name}: {damage}; making it again")
    return damages


def _keep(run: RunDirectory, name: str, record: StageRecord) -> None:
    """Go on with a finished stage: note options that do not matter, and throw away what a kill left of it."""
    if record != run.stages[name]:
        run.commit(name, record)
    _clear(STAGES[name].scraps(run))


def _do_stage(
    run: RunDirectory, name: str, options: StageOptions, record: StageRecord, progress: Progress
) -> None:
    stage = STAGES[name]
    previous = run.stages.get(name)
    run.begin(name, record)
    reset_peak_memory()
    started = time.monotonic()
    try:
        record.counts = stage.run(run, options, progress)
    except (UsageError, PoolError):
        # The stage has found fault with its options or the pool, and written nothing: what was there stays.
        if previous is not None:
            run.commit(name, previous) if previous.state == "done" else run.begin(name, previous)
        raise
    if isinstance(options, IngestOptions):
        _identify(record, options)
    run.checksums.seal(stage.outputs(run))
    record.seconds = round(time.monotonic() - started, 3)
    record.peak_mb = peak_memory_mb()
    record.state = "done"
    run.commit(name, record)
    _clear(stage.scraps(run))


def _clear(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _refuse_to_mix(
    run: RunDirectory, name: str, old: StageRecord, options: StageOptions, inputs: dict[str, Any]
) -> None:
    """Raise if another run's work would be lost; say what differs."""
    stage = STAGES[name]
    if stage.redoable or (old.state != "done" and not stage.partial(run)):
        return
    now = options.as_json(only_that_matter=True)
    changes = [
        f"{cli_name(option)} was {old.options.get(option)} and is now {value}"
        for option, value in now.items()
        if old.options.get(option) != value
    ]
    before, after = _content(old.inputs), _content(inputs)
    for what in after:
        if before.get(what) != after[what]:
            path = old.options.get("seed_model") or old.options.get(what)
            changes.append(f"it was made with another {what}" + (f" ({_shown(path)})" if path else ""))
    msg = (
        f"--run-dir: {run.path} holds the '{name}' stage of a different run: {'; '.join(changes)}. "
        "Name another --run-dir, or repeat the options of that run"
    )
    raise UsageError(msg)


def _shown(path: Any) -> str:
    return str(Inputs.parse(path)) if isinstance(path, list) else str(path)
