"""Pagoda beside other engines, each in an environment of its own: same model, same prompts, asked in turn.

``python -m benchmarks.peers --help``. One file a peer in ``engines/``, one file a checkpoint form in ``forms/``: the
folders are the registries. Files that run inside a peer's environment import the standard library and that peer.
"""
