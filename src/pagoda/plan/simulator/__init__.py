"""The real scheduler on the real page pool under a false clock: what a policy would do to traffic. No torch."""
