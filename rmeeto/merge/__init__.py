"""Token merging for scans: the method of the paper, on torch alone."""

from rmeeto.merge.apply import merge_source, merge_wavg
from rmeeto.merge.config import MergeConfig
from rmeeto.merge.matching import MergePlan, match
from rmeeto.merge.schedule import check_neighbour, merging_blocks, removals, token_counts

__all__ = [
    "MergeConfig",
    "MergePlan",
    "check_neighbour",
    "match",
    "merge_source",
    "merge_wavg",
    "merging_blocks",
    "removals",
    "token_counts",
]
