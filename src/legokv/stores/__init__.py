"""Where documents and chunks outlive a process: one machine's disk, or a fleet's Redis."""
