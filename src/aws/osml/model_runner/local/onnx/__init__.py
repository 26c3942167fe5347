"""Serves a detection network in an ONNX file by the model contract."""
