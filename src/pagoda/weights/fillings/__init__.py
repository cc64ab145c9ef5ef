"""How matrices are filled, a file for each way (`weights.filling` chooses)."""
