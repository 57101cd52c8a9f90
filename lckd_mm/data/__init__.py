"""Data sets: digits that need no download, images without annotations."""
