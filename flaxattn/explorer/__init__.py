"""See attention: one web page, or one figure, of weights, masks and tokens. Knows no models."""

from flaxattn.explorer.figure import figure as figure
from flaxattn.explorer.figure import svg as svg
from flaxattn.explorer.page import page as page
from flaxattn.explorer.seen import Attention as Attention
from flaxattn.explorer.seen import Hypothesis as Hypothesis
from flaxattn.explorer.seen import Sentence as Sentence
from flaxattn.explorer.seen import Written as Written
from flaxattn.explorer.sown import Labels as Labels
from flaxattn.explorer.sown import attentions as attentions
