"""Plain second implementations, written from the reference alone: what the package is tested against."""
