"""Sampling: how the next token is chosen, how its chance is reported, and when a sequence is over.

`params` and `state` (no torch) are what the engine keeps per request and sequence, `sampler` turns a step's logits into
tokens, `steps` are the single steps, `chain` the same for a batch; `structured`, `grammar` and `masks` hold an answer
to a form, `stop` and `finish` decide the end, `beam` keeps the books of a beam search.
"""
