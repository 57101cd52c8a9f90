"""Data sets that need no download, and converters for those that do."""
