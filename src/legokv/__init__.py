"""Position-independent KV caching: compile documents once, link them in any order."""

__version__ = "0.1.0"
