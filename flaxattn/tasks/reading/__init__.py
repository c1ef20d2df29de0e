"""People's own files: documents, texts with labels, and words with tags.

Each reader gives pairs of strings, as `StoredPairs` takes them, and tells what it left out.
"""

from flaxattn.tasks.reading.conll import tagged_sentences
from flaxattn.tasks.reading.documents import documents
from flaxattn.tasks.reading.labelled import labelled_texts

__all__ = ["documents", "labelled_texts", "tagged_sentences"]
