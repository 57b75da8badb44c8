"""Compare selection methods by what a model learns: trainings on subsets, judged on a held-out pool."""

from mllm_selector.comparison.options import CompareOptions, MethodChoice, read_budgets, read_methods
from mllm_selector.comparison.run import compare
from mllm_selector.comparison.statistics import Estimate, estimate, t_quantile
from mllm_selector.comparison.table import as_text

__all__ = [
    "CompareOptions",
    "Estimate",
    "MethodChoice",
    "as_text",
    "compare",
    "estimate",
    "read_budgets",
    "read_methods",
    "t_quantile",
]
