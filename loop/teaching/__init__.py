"""Seed data written by a teacher, which reads images as text or sees them."""
