"""What happens to a logit before the softmax: the score algebra and its patterns."""

from flaxattn.scores.distance import relative_bias as relative_bias
from flaxattn.scores.distance import relative_buckets as relative_buckets
from flaxattn.scores.distance import relative_positions as relative_positions
from flaxattn.scores.patterns import alibi as alibi
from flaxattn.scores.patterns import alibi_slopes as alibi_slopes
from flaxattn.scores.patterns import softcap as softcap
from flaxattn.scores.patterns import temperature as temperature
from flaxattn.scores.rule import score as score
from flaxattn.scores.score import Score as Score
from flaxattn.scores.score import number_leaf as number_leaf
from flaxattn.scores.score import score_type as score_type
