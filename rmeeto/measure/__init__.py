"""What a model costs, how fast it is, and what it merged."""

from rmeeto.measure.flops import Flops, count_flops, token_reduction_ratio
from rmeeto.measure.graphs import graphed
from rmeeto.measure.history import Step, merge_history, not_patches
from rmeeto.measure.released import ReleasedCounters, released_counters
from rmeeto.measure.schedule import fit_schedule
from rmeeto.measure.speed import Timing, benchmark
from rmeeto.measure.visualize import draw_merged, trace

__all__ = [
    "Flops",
    "ReleasedCounters",
    "Step",
    "Timing",
    "benchmark",
    "count_flops",
    "draw_merged",
    "fit_schedule",
    "graphed",
    "merge_history",
    "not_patches",
    "released_counters",
    "token_reduction_ratio",
    "trace",
]
