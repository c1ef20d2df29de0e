"""What `flaxattn --help` says of training; `flaxattn.translation.cli` and the tasks do it."""

import dataclasses

__all__ = ["Train"]


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains a model and scores it: `flaxattn train --help` tells how, and for other tasks than
    translation `flaxattn train TASK --help`.

    $ flaxattn train                              to translate the built-in corpus
    $ flaxattn train small --train my.en my.de    your own two aligned files
    $ flaxattn train language --train my.txt      a language model of your own text
    """
