"""From an ONNX file to a TensorRT plan, by whichever TensorRT there is."""
