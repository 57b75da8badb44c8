"""Planning: what a run would do, and what it would take, before it is begun."""

from mllm_selector.planning.estimates import Break, Plan, StagePlan, estimate
from mllm_selector.planning.look import look
from mllm_selector.planning.rates import Rate, Rates, of_run
from mllm_selector.planning.words import told

__all__ = ["Break", "Plan", "Rate", "Rates", "StagePlan", "estimate", "look", "of_run", "told"]
