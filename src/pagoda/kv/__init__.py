"""KV pages: the pool, the tables over it, the prefix cache, one manager as the engine's only door, and its policies.

Memory of one block (the unit that a pool hands out whole), two layers of three kv-heads::

    page id   b*6+0   b*6+1   b*6+2   b*6+3   b*6+4   b*6+5
              L0 H0   L0 H1   L0 H2   L1 H0   L1 H1   L1 H2
    sequence  └────────────────── one run ────────────────┘    one row for all heads
    layer     └───── run ─────────┘   └───── run ─────────┘    a row per layer
    head      └ run ┘ └ run ┘ …                                a row per head, pages from anywhere

``pages``, ``table``, ``prefix``, ``manager`` and ``audit`` decide and import no torch; ``storage`` and ``view`` hold
tensors; ``dense`` is the view's plain twin.
"""
