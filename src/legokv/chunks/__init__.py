"""Compiled chunks outside the page pool: their keys, their stored form, and where they lie."""
