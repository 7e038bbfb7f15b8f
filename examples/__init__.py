"""Short scripts to run and learn from."""
