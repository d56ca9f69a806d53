"""Programs out: methods of modules as programs that run without this library."""

from modulekit.export.bundle import load, save
from modulekit.export.onnx_file import onnx

__all__ = ["load", "onnx", "save"]
