"""A trained model as a folder that stands on its own: read back, exported, described."""
