"""Converters, one file a checkpoint form, run in the peer's environment.

``python -m benchmarks.peers.forms.NAME FOLDER WEIGHTS TARGET`` reads a Hugging Face folder and writes TARGET.
"""
