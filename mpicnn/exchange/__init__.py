"""Networks with their weights, in and out: ONNX, safetensors, PyTorch's state_dict."""
