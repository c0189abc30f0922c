"""Images and label maps before they are tensors: reading, resizing, blocks, classes."""
