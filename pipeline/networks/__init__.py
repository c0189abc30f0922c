"""The network: architectures, what a saved model holds, devices, inference, calibration, decoding."""
