"""Durable objects for Python, on Ray."""
