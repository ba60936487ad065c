"""What MLflow shows of a run: metrics, live points, notes, data sets, models. `loop.monitors.tracking` brings it there."""
