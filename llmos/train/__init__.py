"""Training: the data, the step, the loop and its checkpoints. `worker` is the only file that knows Ray."""
