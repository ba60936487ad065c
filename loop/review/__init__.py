"""People's review of records: which they see in MLflow, what they said, and what that tells about the filters.

labels           what people said, read back from MLflow
estimates        precision and recall of the verdict and of every filter, with intervals
labelled_data    the labelled records as held-out questions or seed data
"""
