"""The field's benchmarks: scoring predictions, evaluating models, judges and ensembles."""
