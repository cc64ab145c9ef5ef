"""Which sequences run in the next step, and how many tokens of each. Plain Python: no torch, no requests, no tensors."""
