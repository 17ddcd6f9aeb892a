"""Token merging for scans: the method of the paper, on torch alone."""

from rmeeto.merge.config import MergeConfig
from rmeeto.merge.matching import match
from rmeeto.merge.plan import MergePlan, merge_source, merge_wavg
from rmeeto.merge.rules import RULES, find_rule
from rmeeto.merge.schedule import check_neighbour, merging_blocks, removals, token_counts
from rmeeto.merge.state import SSMFeatures, TokenState
from rmeeto.merge.tokens import Tokens

__all__ = [
    "MergeConfig",
    "MergePlan",
    "RULES",
    "SSMFeatures",
    "TokenState",
    "Tokens",
    "check_neighbour",
    "find_rule",
    "match",
    "merge_source",
    "merge_wavg",
    "merging_blocks",
    "removals",
    "token_counts",
]
