"""Modules of a Vision Mamba, and timm's Vision Transformer, that can merge tokens."""

from rmeeto.nn.backbone import VisionMamba
from rmeeto.nn.block import Block, TokenState
from rmeeto.nn.mamba import BiMamba, SSMFeatures
from rmeeto.nn.transformer import MergingTransformer

__all__ = ["BiMamba", "Block", "MergingTransformer", "SSMFeatures", "TokenState", "VisionMamba"]
