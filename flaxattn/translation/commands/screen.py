"""Where the commands speak: not on standard output, which has what was asked for."""

from flaxattn.training.screen import Screen

__all__ = ["SCREEN"]

SCREEN = Screen(error=True, speaker="flaxattn")
