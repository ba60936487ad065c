"""What models and data gain, and whether scores equal the public code."""
