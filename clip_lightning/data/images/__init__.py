"""Image headers, decoding and augmentation."""
