"""The text of translation: pairs are read and split, a corpus is built in, translations scored."""
