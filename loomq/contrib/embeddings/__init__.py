"""Embeddings that need no server: a small BERT computed here, and a hashing of words for tests and first steps."""
