"""The demo town: rendered street scenes with exact labels, in two looks, for trying the loop without any data."""
