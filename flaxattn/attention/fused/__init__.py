"""Attention by kernels that are written for a chip, with masks and scores in their tiles."""
