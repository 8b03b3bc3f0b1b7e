"""Boxes in pictures without torch: geometry, priors, and the layouts of files that name them."""
