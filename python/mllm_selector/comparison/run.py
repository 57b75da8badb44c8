"""The trainings of a comparison, one after the other, each with its row in ``trainings.jsonl``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector import methods, pipeline, training
from mllm_selector.artifacts import ScoreTable, sync, write_json, writing
from mllm_selector.comparison.options import FULL, CompareOptions, MethodChoice
from mllm_selector.comparison.results import summarise
from mllm_selector.config import Amount, Inputs, SeedOptions
from mllm_selector.errors import RunDirectoryError, UsageError
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress, SilentProgress
from mllm_selector.rundir import RunDirectory, fingerprint, fingerprint_inputs
from mllm_selector.stages import pick, seed

__all__ = ["compare"]

_NOT_TRAINING = {"model", "seed_model", "seed_size", "seed"}
_TRAININGS = "trainings"
_TRAINED = "trained.json"  # there once the model of a training is whole
_JUDGED = "judged"  # the run directory in which the held-out samples are scored


@dataclass(frozen=True)
class _Training:
    """One training of the comparison: a method (none for the full pool), a budget and a seed."""

    choice: MethodChoice | None
    budget: Amount
    seed: int

    @property
    def label(self) -> str:
        return FULL if self.choice is None else self.choice.label

    @property
    def key(self) -> tuple[str, str, int]:
        return self.label, str(self.budget), self.seed

    @property
    def folder(self) -> str:
        """A name that can be read, and by its hash is that of no other training."""
        readable = re.sub(r"[^\w.=-]+", "_", f"{self.label}-{self.budget}-{self.seed}")[:60]
        return f"{readable}-{hashlib.sha256(repr(self.key).encode()).hexdigest()[:8]}"


def compare(options: CompareOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Train the same model on subsets by several methods and judge each on held-out samples.

    A call that was killed goes on when it is made again: finished trainings keep their rows, and the one
    that was running goes on from its last checkpoint. Methods, budgets and seeds may be added later.

    Parameters
    ----------
    options : CompareOptions
        What is compared.
    progress : Progress, optional
        What to report to; silent by default.

    Returns
    -------
    dict
        What ``comparison.json`` holds; see `mllm_selector.comparison.results.summarise`.

    Raises
    ------
    UsageError
        If an option cannot work, or the folder holds a comparison of another run, model or recipe.
    RunDirectoryError
        If the run's pool is not scored, or damaged.
    MllmSelectorError
        If a training or its judgement fails; what was finished before stays.
    """
    progress = progress or SilentProgress()
    source = _open_source(options.run)
    recipe = _recipe(source, options)
    wanted = _trainings(options)
    with RunDirectory(options.run_dir) as home:
        settings = _settle(home.path / "settings.json", _settings(source, options, recipe))
        rows = home.path / "trainings.jsonl"
        done = _read_rows(rows)
        left = [each for each in wanted if each.key not in done]
        for each in wanted:
            if each.key in done:
                _clear(_own(home, each))
        if left:
            training.need_packages()
            _check_held_out(options, progress)
        subsets = _choose_all(source, options, left, progress)
        for number, each in enumerate(left, len(wanted) - len(left) + 1):
            progress.note(
                f"training {number} of {len(wanted)}: {each.label}, {each.budget}, seed {each.seed}"
            )
            row = _train_and_judge(home, source, options, recipe, each, subsets[each.key], progress)
            _add_row(rows, row)
            done[each.key] = row
            _clear(_own(home, each))
        result = summarise([done[each.key] for each in wanted], settings)
        write_json(home.path / "comparison.json", result)
    return result


def _open_source(path: Path) -> RunDirectory:
    """Open the run whose pool is scored; it is only read."""
    if not path.is_dir():
        msg = f"{path} is not a run directory; name one in which 'select' or 'score' has finished"
        raise UsageError(msg)
    source = RunDirectory(path)
    source.load()
    source.need("score")
    for damage in source.checksums.damages([source.pool, source.seed_rows, source.scores]):
        msg = f"{damage}; run 'select' with the options of this run: it mends it"
        raise RunDirectoryError(msg)
    return source


def _recipe(source: RunDirectory, options: CompareOptions) -> SeedOptions:
    """Return how models are trained: as the run's seed model was, but for what the user says."""
    before = source.need("seed").options
    kept = {name: value for name, value in before.items() if name not in _NOT_TRAINING}
    model = options.training.get("model", before.get("model"))
    if model is None:
        msg = "--model is missing: the run used a tuned seed model, so name the model to train"
        raise UsageError(msg)
    return SeedOptions(**{**kept, **options.training, "model": str(model)})


def _trainings(options: CompareOptions) -> list[_Training]:
    """List the trainings; seeds go first, so that what is finished early can be compared."""
    return [
        _Training(choice, budget, seed_)
        for seed_ in range(options.seeds)
        for budget in options.budgets
        for choice in ([None] if _is_whole(budget) else options.choices)
    ]


def _is_whole(budget: Amount) -> bool:
    return budget.is_share and budget.value == 1


def _settings(source: RunDirectory, options: CompareOptions, recipe: SeedOptions) -> dict[str, Any]:
    """Return what all trainings of a comparison have in common."""
    model = Path(recipe.model or "").expanduser()
    held_out = Inputs.parse(list(options.held_out), "--held-out")
    for path in held_out.paths:
        if not path.exists():
            msg = f"--held-out: {path} does not exist; name a file or a folder of samples"
            raise UsageError(msg)
    names = recipe.as_json(only_that_matter=True)
    return {
        "scores": source.need("score").key,
        "held_out": fingerprint_inputs(held_out)["hash"],
        "model": fingerprint(model)["hash"] if model.is_dir() else recipe.model,
        "training": {name: value for name, value in names.items() if name not in _NOT_TRAINING},
        "steps": options.steps,
    }


def _settle(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write down the settings of a comparison, or check that they are those its trainings were begun with."""
    if not path.exists() or not path.with_name(_TRAININGS).exists():
        write_json(path, settings)
        return settings
    before = json.loads(path.read_text())
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        shown = "; ".join(f"{name} was {before.get(name)} and is now {settings[name]}" for name in changed)
        msg = (
            f"--run-dir: {path.parent} holds a comparison with other settings: {shown}. Name another "
            "--run-dir, or repeat the options of that comparison"
        )
        raise UsageError(msg)
    return settings


def _choose_all(
    source: RunDirectory, options: CompareOptions, left: list[_Training], progress: Progress
) -> dict[tuple[str, str, int], NDArray[np.uint64]]:
    """Choose every subset, so that a method that cannot meet a budget is known before any training."""
    pool = Pool.of(source)
    subsets = {}
    for each in left:
        if each.choice is None:
            subsets[each.key] = np.arange(len(pool), dtype=np.uint64)
            continue
        more = {"scores": list(options.scores)} if options.scores else {}
        wanted = each.choice.pick_options(each.budget, each.seed, **more)
        try:
            scored, _, _ = pick.read_scored(source, pool, wanted)
            chosen = methods.choose(scored, wanted, progress)
        except UsageError as error:
            msg = f"{each.label} at {each.budget}: {error}"
            raise UsageError(msg) from error
        subsets[each.key] = np.sort(chosen.rows).astype(np.uint64)
    return subsets


def _train_and_judge(
    home: RunDirectory,
    source: RunDirectory,
    options: CompareOptions,
    recipe: SeedOptions,
    each: _Training,
    rows: NDArray[np.uint64],
    progress: Progress,
) -> dict[str, Any]:
    """Train one model and score the held-out samples with it; return its row."""
    began = time.monotonic()
    own = _own(home, each)
    judged, trained = own.path / _JUDGED, own.path / _TRAINED
    if not trained.exists():
        shutil.rmtree(judged, ignore_errors=True)
        counts = _train(own, source, options, recipe, each, rows, progress)
        write_json(trained, counts)
    counts = json.loads(trained.read_text())
    _score_held_out(judged, own.seed_model, source, options, recipe, progress)
    return {
        "method": each.label,
        "budget": str(each.budget),
        "seed": each.seed,
        "samples": len(rows),
        "trained_on": counts["seed_samples"],
        "steps": counts["steps"],
        "last_loss": counts["last_loss"],
        "seconds": round(time.monotonic() - began, 1),
        "sources": _by_source(judged),
    }


def _own(home: RunDirectory, each: _Training) -> RunDirectory:
    return RunDirectory(home.path / _TRAININGS / each.folder)


def _clear(own: RunDirectory) -> None:
    """Throw away what a finished training does not need any more; its adapter and log stay."""
    for scrap in (own.seed_model, own.seed_checkpoints, own.path / _JUDGED):
        shutil.rmtree(scrap, ignore_errors=True)
    for file in (own.seed_plan, own.path / _TRAINED):
        file.unlink(missing_ok=True)


def _train(
    own: RunDirectory,
    source: RunDirectory,
    options: CompareOptions,
    recipe: SeedOptions,
    each: _Training,
    rows: NDArray[np.uint64],
    progress: Progress,
) -> dict[str, Any]:
    values = recipe.as_json() | {"seed": each.seed}
    if options.steps is not None:
        values["seed_epochs"] = options.steps * recipe.seed_batch_size / len(rows)
    recipe = SeedOptions(**values)
    assert recipe.model is not None
    with training.quiet():
        return seed.tune(own, recipe, recipe.model, Pool.of(source), rows, progress)


def _check_held_out(options: CompareOptions, progress: Progress) -> None:
    """Read the held-out samples, so that what is wrong with them is known before any training."""
    with tempfile.TemporaryDirectory(prefix="mllm-selector-held-out-") as folder:
        stages = pipeline.build_options(_held_out(options), ["ingest"])
        pipeline.run_stages(Path(folder), stages, progress)


def _held_out(options: CompareOptions) -> dict[str, Any]:
    given: dict[str, Any] = {"pool": list(options.held_out)}
    return given if options.held_out_images is None else given | {"images": options.held_out_images}


def _score_held_out(
    folder: Path,
    model: Path,
    source: RunDirectory,
    options: CompareOptions,
    recipe: SeedOptions,
    progress: Progress,
) -> None:
    """Score the held-out samples by the stages of the pipeline, in a run directory of their own."""
    scored = source.need("score").options
    given = _held_out(options) | {
        "seed_model": model,
        "trust_remote_code": recipe.trust_remote_code,
        "engine": "torch",
        "precision": source.need("export").options["precision"],
        "device": scored["device"],
        "max_tokens": scored["max_tokens"],
        "metrics": "accuracy",
    }
    stages = pipeline.build_options(given, ["ingest", "seed", "export", "score"])
    pipeline.run_stages(folder, stages, progress)


def _by_source(judged: Path) -> dict[str, dict[str, float]]:
    """Return for each source its samples, whole answers and tokens that are right, and mean loss."""
    run = RunDirectory(judged)
    run.load()
    codes, names = Pool.of(run).sources()
    scores = ScoreTable.load(run.scores)
    tokens, loss = scores.column("accuracy").astype(np.float64), scores.column("nll").astype(np.float64)
    result = {}
    for code, name in enumerate(names):
        of = (codes == code) & ~np.isnan(loss)
        if of.any():
            result[name] = {
                "samples": int(of.sum()),
                "accuracy": float((tokens[of] == 1).mean()),
                "token_accuracy": float(tokens[of].mean()),
                "loss": float(loss[of].mean()),
            }
    return result


def _read_rows(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Read the rows of finished trainings; a last line that was cut off is dropped from the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    rows: list[Mapping[str, Any]] = [json.loads(line) for line in whole.splitlines()]
    return {(row["method"], row["budget"], row["seed"]): dict(row) for row in rows}


def _add_row(path: Path, row: dict[str, Any]) -> None:
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        sync(path)
