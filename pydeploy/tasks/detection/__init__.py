"""Detection of objects: boxes, classes and scores from an SSD's outputs."""
