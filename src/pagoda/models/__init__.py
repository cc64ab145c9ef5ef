"""Models: shapes (no torch), layers, one file per native family, loading, tokenizer, chat."""
