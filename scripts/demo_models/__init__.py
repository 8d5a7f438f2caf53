"""The training of the demo's small models: data, one loop for all, and the loss of each."""
