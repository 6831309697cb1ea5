"""The runner of a TensorRT plan: its sessions, contexts and buffers."""
