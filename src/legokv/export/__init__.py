"""The model as an ONNX file: standard ops, and this project's two, which the plugins implement."""

from legokv.export.onnx_file import export_onnx

__all__ = ["export_onnx"]
