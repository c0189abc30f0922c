"""What is measured and shown: metrics, the verdict on the gain, the learning curve, pictures."""
