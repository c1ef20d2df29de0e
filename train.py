"""Trains a translator and scores it: `python train.py --help` tells how."""

import sys

from configs import PRESETS
from flaxattn.translation.cli import main

if __name__ == "__main__":
    sys.exit(main(PRESETS))
