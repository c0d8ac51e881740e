"""Deployment: ONNX graphs in three precisions, their validation, and TensorRT engines."""
