"""What to decide: plain objects that know neither Ray nor torch."""
