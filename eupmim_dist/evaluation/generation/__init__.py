"""Answers in words that are items for certain: a model writes along a trie of what items are called."""
