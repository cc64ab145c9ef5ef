"""Array kernels: one op = one signature in ``ops/``, a plain torch reference, and faster implementations behind it.

Callers use the functions of ``pagoda.kernels.ops``; ``dispatch`` picks the implementation. Kernels know arrays only.
"""
