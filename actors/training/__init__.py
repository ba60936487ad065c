"""Training: jobs, batches, the DeepSpeed trainer and its process group. `actors.trainer` runs it in one Ray actor per rank."""
