"""The student as ONNX graphs in three precisions, what each loses, and TensorRT engines."""
