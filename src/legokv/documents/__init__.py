"""Registered documents: what they are, how they are cut into chunks, and the registry of them."""
