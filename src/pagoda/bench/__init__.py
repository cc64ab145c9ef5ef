"""Measuring quality, load and cost of the engine."""
