"""Seed data written by a text-only teacher, which reads images as text."""
