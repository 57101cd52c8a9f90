"""Files: atomic writes, loading without running code, contents of checkpoints, export to other formats."""
