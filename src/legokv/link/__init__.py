"""Segments become one prompt: where each stands, and which cached tokens are computed again."""
