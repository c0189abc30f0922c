"""People who label in Label Studio: its server, its projects, its tasks and its editor."""
