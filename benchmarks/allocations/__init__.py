"""What a decode step allocates in its steady state: see ``__main__``."""
