"""Models for other runtimes: ONNX files, and packages that run without Python."""

from rmeeto.export.onnx import to_onnx
from rmeeto.export.package import to_package

__all__ = ["to_onnx", "to_package"]
