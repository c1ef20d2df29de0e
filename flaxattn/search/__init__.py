"""Search over sequences of tokens: beams, the most likely token, samples; models are steps."""

from flaxattn.search.beam import beam_search as beam_search
from flaxattn.search.following import greedy as greedy
from flaxattn.search.hypotheses import Hypotheses as Hypotheses
from flaxattn.search.hypotheses import Step as Step
from flaxattn.search.hypotheses import length_penalties as length_penalties
from flaxattn.search.sampling import sample as sample
