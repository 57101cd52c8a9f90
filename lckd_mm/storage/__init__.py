"""Files: written whole, read without running code; what is in a checkpoint; export to other formats."""
