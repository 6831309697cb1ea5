"""Plain requests and replies that `model_repo` translates from and to tensors."""
