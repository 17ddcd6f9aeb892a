"""Models for other runtimes: ONNX files."""

from rmeeto.export.onnx import to_onnx

__all__ = ["to_onnx"]
