"""Text and its tokens: pairs are read, split and packed into batches, and translations scored."""
