"""Translations: sought on the device, given in order, and explained."""
