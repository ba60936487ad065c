"""Images and labelled data, a file per kind."""
