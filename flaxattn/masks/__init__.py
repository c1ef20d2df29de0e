"""What may attend to what: the mask algebra and its patterns."""

from flaxattn.masks.blocks import Blocks as Blocks
from flaxattn.masks.blocks import Bounds as Bounds
from flaxattn.masks.data import from_dense as from_dense
from flaxattn.masks.data import global_tokens as global_tokens
from flaxattn.masks.data import lengths as lengths
from flaxattn.masks.data import same_segment as same_segment
from flaxattn.masks.data import valid as valid
from flaxattn.masks.leaves import index_leaf as index_leaf
from flaxattn.masks.leaves import leaf as leaf
from flaxattn.masks.leaves import mask_type as mask_type
from flaxattn.masks.mask import Mask as Mask
from flaxattn.masks.plan import BlockPlan as BlockPlan
from flaxattn.masks.positions import causal as causal
from flaxattn.masks.positions import chunked as chunked
from flaxattn.masks.positions import dilated as dilated
from flaxattn.masks.positions import full as full
from flaxattn.masks.positions import prefix as prefix
from flaxattn.masks.positions import sliding_window as sliding_window
from flaxattn.masks.rule import where as where
