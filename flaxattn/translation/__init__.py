"""From two text files to a scored, translating model. Here: what uses one that is trained.

>>> from pathlib import Path
>>> translator = Translator(*load(Path("tests/kept/1")))
>>> len(translator.translate(["The old man sees a dog."], n_best=2)[0])
2
"""

from flaxattn.text.tokenizer import Tokenizer as Tokenizer
from flaxattn.translation.config import DecodingConfig as DecodingConfig
from flaxattn.translation.decoding.translator import Translation as Translation
from flaxattn.translation.decoding.translator import Translator as Translator
from flaxattn.translation.trained.loading import Loaded as Loaded
from flaxattn.translation.trained.loading import load as load
