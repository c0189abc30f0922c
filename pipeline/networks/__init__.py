"""The network: architectures, encoder weights, saved models, devices, inference, calibration, decoding of labels."""
