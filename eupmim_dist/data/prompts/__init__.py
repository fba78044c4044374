"""Users, items and what is asked of them as text, as tokens, and as the batch that a language model reads."""
