"""Seed data written by a teacher that reads images as text."""
