"""Studies and timings, run by hand; their numbers stand in docs/results with the command that made them."""
