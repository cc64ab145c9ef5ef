"""Pagoda: language models inside a memory budget that you state in bytes."""
