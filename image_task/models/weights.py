"""Loading weights, as every task does it: see `rmeeto.weights`."""

from rmeeto.weights import LoadReport, adapt_pos_embed, load_weights, read_checkpoint

__all__ = ["LoadReport", "adapt_pos_embed", "load_weights", "read_checkpoint"]
