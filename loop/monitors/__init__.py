"""What people see of a run: progress, tables, status, logs, and the MLflow mirror."""
