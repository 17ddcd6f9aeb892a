"""Models for other runtimes: ONNX files, packages that run without Python, programs of torch's operators."""

from rmeeto.export.onnx import to_onnx
from rmeeto.export.package import to_package
from rmeeto.export.program import to_program

__all__ = ["to_onnx", "to_package", "to_program"]
