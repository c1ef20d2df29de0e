"""Masks drawn: blocks in words, cells as text or as a picture, and a gallery of them."""

from flaxattn.drawing.explain import explain as explain
