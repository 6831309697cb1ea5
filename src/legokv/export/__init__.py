"""The model as ONNX files: standard ops, and this project's own, which the plugins implement."""

from legokv.export.onnx_file import Quantised, export_onnx, export_scoring_onnx

__all__ = ["Quantised", "export_onnx", "export_scoring_onnx"]
