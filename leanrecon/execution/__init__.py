"""Running the tasks of stages on the workers of a cluster."""
