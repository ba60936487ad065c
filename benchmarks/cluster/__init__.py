"""Whole runs on clusters of Ray nodes that share nothing but a network."""
