"""What the report says in sentences."""

from __future__ import annotations

from typing import Any

from mllm_selector import methods
from mllm_selector.config import default_within
from mllm_selector.metrics import METRICS, NLL
from mllm_selector.reporting.numbers import Numbers, Source
from mllm_selector.reporting.overview import Coverage, Duplicates

__all__ = [
    "PRICE_HINT",
    "REJECTED",
    "STAGES",
    "UNSCORED",
    "drawn_sentence",
    "duplicates_sentence",
    "duration",
    "larger_budget",
    "lead",
    "method_steps",
    "rate",
    "scored_note",
    "seed_sentence",
    "shift_sentence",
    "unscored_sentence",
]

STAGES = {
    "ingest": "Read and check the pool",
    "seed": "Tune the seed model",
    "export": "Turn it into scoring graphs",
    "score": "Score the samples",
    "pick": "Choose the subset",
}

PRICE_HINT = "With --hourly-price, the report stage says what each stage cost."

REJECTED = {
    "too-large": "The record is larger than is read",
    "not-an-object": "The record is not a JSON object",
    "broken-utf8": "The text is not valid UTF-8",
    "invalid-json": "The record is not valid JSON",
    "no-conversations": "There is no conversation",
    "bad-turn": "A turn cannot be read",
    "turn-order": "Questions and answers do not alternate",
    "no-answer": "There is no answer to learn from",
    "image-missing": "The image file is missing",
    "image-outside": "The image path leaves the images folder",
    "image-marks": "The image marks do not match the images",
    "duplicate-id": "An earlier record has the same id",
}

UNSCORED = {
    "too-long": "More tokens than are scored",
    "no-answer-tokens": "No token of an answer is left after the chat template",
    "image-unreadable": "An image cannot be read",
    "chat-template": "The chat template refuses the conversation",
    "image-marks": "The image marks do not match the images",
    "not-finite": "The loss is not a finite number",
}

GROUPS = {
    "cluster": "k-means clusters of the embeddings",
    "necessity": "strata of equal size by necessity",
    "source": "the sources",
    "random": "random groups",
}

SHARES = {
    "size-necessity": "A group's share of the budget is proportional to its size times its mean necessity.",
    "necessity": "A group's share of the budget is proportional to its mean necessity.",
    "size": "A group's share of the budget is proportional to its size.",
    "equal": "Every group has the same share of the budget.",
}

WITHIN = {
    "uniform": "uniformly at random",
    "top": "by highest necessity",
    "weighted": "at random, with a probability proportional to necessity, without replacement",
    "k-center": "by greedy k-center, so that they cover the group's embeddings",
    "facility-location": "by facility location, so that the group's other samples are near them",
    "middle": "nearest to the group's middle necessity",
}

SEED_SAMPLES = {
    "compete": "could be chosen like any other and then count in the budget",
    "include": "were all taken and count in the budget",
    "exclude": "could not be chosen, so the budget comes on top of them",
}


def lead(numbers: Numbers) -> str:
    """Say in a sentence or two what came out."""
    share = numbers.chosen / max(1, numbers.samples)
    sources = len(numbers.sources)
    text = (
        f"Of {numbers.samples:,} samples from {sources:,} source{'s' * (sources != 1)}, "
        f"{numbers.chosen:,} ({share:.1%}) were chosen for training; the budget was {numbers.budget}."
    )
    pool, chosen = numbers.pool_necessity.mean, numbers.chosen_necessity.mean
    if pool is None or chosen is None or pool <= 0:
        return text
    ratio = chosen / pool
    unit = f" {numbers.unit}" if numbers.unit else ""
    if abs(ratio - 1) < 0.005:
        return f"{text} Their mean necessity is that of the pool ({pool:.3g}{unit})."
    direction = "above" if ratio > 1 else "below"
    return (
        f"{text} Their mean necessity is {chosen:.3g}{unit}, "
        f"{abs(ratio - 1):.0%} {direction} the pool's {pool:.3g}."
    )


def shift_sentence(sources: list[Source]) -> str:
    """Say which sources gained and lost most."""
    change = {source.source: source.chosen_share - source.pool_share for source in sources}
    share = {source.source: (source.pool_share, source.chosen_share) for source in sources}
    most, least = max(change, key=change.__getitem__), min(change, key=change.__getitem__)
    if change[most] < 0.001:
        return "Every source has about the same share of the selection as of the pool."
    return (
        f"{most} gained most, from {share[most][0]:.1%} of the pool to {share[most][1]:.1%} of the "
        f"selection; {least} lost most, from {share[least][0]:.1%} to {share[least][1]:.1%}."
    )


def seed_sentence(numbers: Numbers, pick_options: dict[str, Any]) -> str:
    """Say how the seed samples were treated and how many were chosen."""
    if not numbers.seed_subset:
        return "No seed subset was drawn in this run: the seed model was given."
    rule = SEED_SAMPLES[pick_options["seed_samples"]]
    return (
        f"The {numbers.seed_subset:,} samples that the seed model was tuned on {rule}; "
        f"{numbers.seed_chosen:,} of them are in the selection."
    )


def scored_note(numbers: Numbers) -> str:
    """Say in a few words what was not scored."""
    if numbers.drawn is not None:
        return f"up to {numbers.drawn.of_each:,} of each of {numbers.drawn.clusters:,} clusters"
    unscored = numbers.samples - numbers.pool_necessity.scored
    return f"{unscored:,} not scored" if unscored else "every sample"


def drawn_sentence(numbers: Numbers) -> str | None:
    """Say what necessity is made of where only some samples were scored."""
    drawn = numbers.drawn
    if drawn is None:
        return None
    text = (
        f"Necessity was measured on {drawn.measured:,} samples "
        f"({drawn.measured / max(1, numbers.samples):.1%} of the pool), up to {drawn.of_each:,} of each "
        f"of {drawn.clusters:,} clusters. On this page the necessity of a sample is the mean of its "
        "cluster; only the galleries of highest, chosen and lowest show scored samples with their own."
    )
    if drawn.clusters_without:
        text += (
            f" In {drawn.clusters_without:,} clusters no sample could be scored: they have the mean of "
            "the pool."
        )
    return text


def unscored_sentence(numbers: Numbers) -> str:
    """Say how many samples have no score."""
    unscored = numbers.samples - numbers.pool_necessity.scored
    if not unscored:
        whole = "Every sample of the pool was scored."
        return whole if numbers.drawn is None else "Every sample of the pool could be read."
    chosen = numbers.chosen - numbers.chosen_necessity.scored
    told = f"{chosen:,}" if chosen else "none"
    return f"{unscored:,} samples could not be scored; {told} of these were chosen."


def larger_budget(coverage: Coverage, budget: int) -> str:
    """Say what more samples would change for the distance of the pool to the selection."""
    at = {count: place for place, count in enumerate(coverage.counts)}
    now = coverage.median[at.get(budget, 0)]
    random = coverage.random_median[at.get(budget, 0)]
    text = (
        f"Half of the pool lies within {now:.2g} of a chosen sample; with as many samples drawn uniformly "
        f"it would be {random:.2g}."
    )
    larger = [count for count in coverage.counts if count > budget]
    if not larger or now <= 0:
        return text
    best = min(larger, key=lambda count: abs(count - 2 * budget))
    then = coverage.median[at[best]]
    return (
        f"{text} A budget of {best:,} ({best / budget:.1f} times this one), filled up uniformly, would "
        f"bring it to {then:.2g}, which is {1 - then / now:.0%} nearer."
    )


def duplicates_sentence(found: Duplicates) -> str:
    """Say how common near-duplicates are."""
    text = (
        f"Of {found.pool:,} samples drawn uniformly from the pool, {found.pool_near:,} "
        f"({found.pool_near / max(1, found.pool):.1%}) have a near-duplicate in it: an embedding with a "
        f"cosine of at least {found.cosine}. "
    )
    if found.chosen:
        text += (
            f"Of {found.chosen:,} chosen ones, {found.chosen_near:,} "
            f"({found.chosen_near / found.chosen:.1%}) have one among the chosen. "
        )
    return text + (
        "Look at some before you believe it: to a seed model that has learnt little, different samples "
        "may look alike. pick --skip-duplicates COSINE passes over them."
    )


def method_steps(numbers: Numbers, options: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Tell the method step by step with the parameters of this run.

    Parameters
    ----------
    numbers : Numbers
        The report's numbers.
    options : dict
        Options of each stage (`command.settings`).

    Returns
    -------
    list of (str, str)
        Heading and sentences of each step.
    """
    return [
        ("Seed model.", _seed_step(numbers, options["seed"])),
        ("Necessity.", _necessity(numbers)),
        ("Diversity.", _pick_step(options["pick"], numbers)),
    ]


NECESSITY = (
    "A sample's necessity is the mean negative log-likelihood of its answer tokens in nats: "
    "\u2212(1/T) \u03a3 log p(answer token t | images, question, answer tokens before t). High means "
    "that the seed model cannot do it yet."
)


def _necessity(numbers: Numbers) -> str:
    read = "The seed model read every sample of the pool. "
    if numbers.drawn is not None:
        read = (
            "Every sample's question (mean of its token embeddings) and images (mean and maximum of "
            "their features) were put into clusters, without a pass through the language model. The "
            f"seed model read up to {numbers.drawn.of_each:,} samples of each cluster, drawn uniformly, "
            "and their mean necessity counts for all samples of the cluster. "
        )
    if numbers.metric == NLL:
        return read + NECESSITY
    known = METRICS[numbers.metric]
    source = f" ({known.source})" if known.source else ""
    unit = f", in {known.unit}" if known.unit else ""
    return f"{read}The necessity is {numbers.metric}{source}: {known.meaning}{unit}."


def _seed_step(numbers: Numbers, seed: dict[str, Any]) -> str:
    if not numbers.seed_subset:
        given = f" ({seed['seed_model']})" if seed["seed_model"] else ""
        return f"The seed model was given{given}, so nothing was tuned."
    model = seed["model"] or "the pretrained model"
    return (
        f"{numbers.seed_subset:,} samples were drawn uniformly at random, and {model} was tuned on them "
        f"with LoRA: rank {seed['lora_rank']}, epochs {seed['seed_epochs']:g}, {seed['seed_batch_size']} "
        f"samples a step, peak learning rate {seed['seed_learning_rate']:g}, random seed {seed['seed']}."
    )


def _pick_step(pick: dict[str, Any], numbers: Numbers) -> str:
    if pick["method"] == "grouped":
        parts = _grouped(pick, numbers)
    else:
        parts = [methods.sentence(pick["method"], pick["param"] or {})]
    if pick["source_floor"]:
        parts.append(f"At least {_limits(pick['source_floor'])}.")
    if pick["source_ceiling"]:
        parts.append(f"At most {_limits(pick['source_ceiling'])}.")
    if pick["trim"]:
        parts.append(f"The highest {pick['trim']:.1%} of each group could not be chosen.")
    if pick["skip_duplicates"]:
        cosine = pick["skip_duplicates"]
        parts.append(
            f"Samples whose embedding has a cosine of at least {cosine} with a chosen one were skipped."
        )
    parts.append(f"Random seed {pick['seed']}.")
    return " ".join(parts)


def _grouped(pick: dict[str, Any], numbers: Numbers) -> list[str]:
    made = GROUPS[pick["groups"]]
    if numbers.drawn is not None and pick["groups"] == "cluster":
        made = "the clusters that samples were drawn from"
    parts = [
        f"The pool was cut into groups: {made}.",
        SHARES[pick["share"]],
        "What a small group cannot use is shared out again.",
        f"Inside a group samples were chosen {WITHIN[pick['within'] or default_within(pick['groups'])]}.",
    ]
    if pick["smooth"]:
        parts.append(
            f"As necessity of a sample counted the mean over its {pick['smooth']} nearest neighbours, "
            "without the highest and lowest tenth."
        )
    return parts


def _limits(amounts: dict[str, str]) -> str:
    others = "each other source" if len(amounts) > 1 else "each source"
    told = []
    for name, amount in amounts.items():
        of_budget = " of the budget" if amount.endswith("%") else ""
        told.append(f"{amount}{of_budget} from {others if name == '*' else name}")
    return ", ".join(told)


def rate(samples: int | None, seconds: float) -> str:
    """Write how many samples a second went through a stage."""
    if not samples or seconds <= 0:
        return ""
    value = samples / seconds
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Write a time as people do."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
