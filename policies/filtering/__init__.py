"""Which records are kept: the filters and their chain."""
