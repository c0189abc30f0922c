"""The commands that people run, `python -m pipeline <command>`, besides the stages. Each starts without torch."""
