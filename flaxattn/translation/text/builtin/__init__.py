"""A corpus that needs no download: English and German sentences from a grammar of our own."""

from flaxattn.translation.text.builtin.corpus import pairs

__all__ = ["pairs"]
