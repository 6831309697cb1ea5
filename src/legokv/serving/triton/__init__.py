"""All that knows Triton: its tensors, its server, its models' processes."""
