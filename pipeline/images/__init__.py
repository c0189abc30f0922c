"""Images and masks: reading and writing them, resizing, classes and their ids, blocks of an image, items of a set."""
