"""The compiled kernels, called by pointer, and how they are compiled."""
