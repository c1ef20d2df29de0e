"""Text in files, its tokens, and packed rows of them: what every task that reads text stands on."""
