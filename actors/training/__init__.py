"""Training: jobs, batches, the DeepSpeed trainer and its process group. `actors.trainer` runs it in a Ray actor per rank."""
