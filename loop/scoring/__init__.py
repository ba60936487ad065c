"""The field's benchmarks: scores of predictions, models asked about them, judges and ensembles."""
