"""The demo town: rendered street scenes with exact labels."""
