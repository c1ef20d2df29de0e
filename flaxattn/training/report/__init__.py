"""A page on a run that has ended: how it learned, what it can do, and what it attends to."""

from flaxattn.training.report.writing import write_page as write_page
