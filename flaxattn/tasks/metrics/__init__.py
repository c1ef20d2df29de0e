"""Precision, recall and F1: of entities in tag sequences, and of classes."""

from flaxattn.tasks.metrics.classes import class_scores
from flaxattn.tasks.metrics.entities import entity_scores

__all__ = ["class_scores", "entity_scores"]
