"""Search over sequences of tokens: beam, greedy, sampling, over any function that reads a token."""

from flaxattn.search.beam import beam_search as beam_search
from flaxattn.search.constraints import Beginning as Beginning
from flaxattn.search.constraints import Choice as Choice
from flaxattn.search.constraints import Constraint as Constraint
from flaxattn.search.constraints import NoRepeats as NoRepeats
from flaxattn.search.constraints import Prefixes as Prefixes
from flaxattn.search.decode_step import DecodeStep as DecodeStep
from flaxattn.search.generation import greedy as greedy
from flaxattn.search.hypotheses import Hypotheses as Hypotheses
from flaxattn.search.rules import Groups as Groups
from flaxattn.search.rules import Lengths as Lengths
from flaxattn.search.rules import SpecialTokens as SpecialTokens
from flaxattn.search.rules import length_penalties as length_penalties
from flaxattn.search.sampling import sample as sample
from flaxattn.search.terms import Terms as Terms
