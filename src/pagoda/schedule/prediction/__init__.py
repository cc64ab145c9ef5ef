"""How long answers will be, learned from those that ended. No torch."""
