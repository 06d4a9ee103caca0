"""Two models on the same images: paired differences, and the images on which they disagree."""
