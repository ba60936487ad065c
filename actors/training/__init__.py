"""Training: jobs, batches, the DeepSpeed trainer and its process group. `actors.trainer` makes it a group of Ray actors."""
