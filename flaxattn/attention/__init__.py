"""softmax(q kᵀ · scale, where mask) v: one definition behind one front door."""

from flaxattn.attention.attend import attend as attend
from flaxattn.attention.attend import attend_with_stats as attend_with_stats
from flaxattn.attention.dense import attend_head as attend_head
from flaxattn.attention.dropout import dropout_keys as dropout_keys
from flaxattn.attention.layout import Layout as Layout
from flaxattn.attention.merge import merge as merge
from flaxattn.attention.over import attend_over as attend_over
from flaxattn.attention.table import prepare as prepare
from flaxattn.attention.weights import attention_weights as attention_weights
