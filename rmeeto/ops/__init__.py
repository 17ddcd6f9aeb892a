"""Operators: one folder each, with the definition, the fast paths and one entry point."""

from rmeeto.ops.add_norm import add_rms_norm
from rmeeto.ops.conv1d import bidirectional_conv1d
from rmeeto.ops.selective_scan import Direction, bidirectional_scan, selective_scan
from rmeeto.ops.token_merge import match_tokens, merge_tokens

__all__ = [
    "Direction",
    "add_rms_norm",
    "bidirectional_conv1d",
    "bidirectional_scan",
    "match_tokens",
    "merge_tokens",
    "selective_scan",
]
