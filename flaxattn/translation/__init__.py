"""From two text files to a scored, translating model."""
