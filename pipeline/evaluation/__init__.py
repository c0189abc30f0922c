"""Evaluation: metrics on the test set, the audit's verdict on the gain, the forecast by a learning curve, pictures."""
