"""rmeeto: faster Vision Mamba by merging tokens and re-training for minutes."""

from rmeeto.merge import MergeConfig

__version__ = "0.1.0"
__all__ = ["MergeConfig", "__version__"]
