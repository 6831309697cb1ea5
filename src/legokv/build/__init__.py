"""An engine folder is made here, and proven to link correctly before it is kept."""
