"""Modules of a Vision Mamba that can merge tokens."""

from rmeeto.nn.backbone import VisionMamba
from rmeeto.nn.block import Block, TokenState
from rmeeto.nn.mamba import BiMamba, SSMFeatures

__all__ = ["BiMamba", "Block", "SSMFeatures", "TokenState", "VisionMamba"]
