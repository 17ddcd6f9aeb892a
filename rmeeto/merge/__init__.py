"""Token merging for scans: the method of the paper, on torch alone."""

from rmeeto.merge.apply import merge_source, merge_wavg
from rmeeto.merge.config import MergeConfig
from rmeeto.merge.matching import MergePlan, match
from rmeeto.merge.schedule import merging_blocks, removals, token_counts

__all__ = [
    "MergeConfig",
    "MergePlan",
    "match",
    "merge_source",
    "merge_wavg",
    "merging_blocks",
    "removals",
    "token_counts",
]
