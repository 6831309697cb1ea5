"""One step of the model as host arrays: sequences, batches, and the graph's names and shapes."""
