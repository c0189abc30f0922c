"""What people call themselves: `python -m pipeline <command>`. Each starts without torch."""
