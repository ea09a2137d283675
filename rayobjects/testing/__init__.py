"""Doubles for tests, of layers 1 to 3: no Ray, no network, no waiting."""
