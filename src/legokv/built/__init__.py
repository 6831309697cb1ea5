"""An engine folder as it lies on disk: read, and checked against this version and machine."""
