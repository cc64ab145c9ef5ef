"""Checkpoints on disk: what is in them (``header``, no torch) and reading them tensor by tensor (``reader``)."""
