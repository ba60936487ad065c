"""What is trained on: selection of records, and mixing with labelled data."""
