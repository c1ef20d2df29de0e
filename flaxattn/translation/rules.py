"""What the folders of translation's runs must know: settings that may change, files, data."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from flaxattn.training.config import config_hash as hash_of
from flaxattn.training.task import RunRules
from flaxattn.translation.config import (
    DecodingConfig,
    RunConfig,
    data_path,
    tokenizer_path,
)
from flaxattn.translation.layout import RESULTS, TOKENIZER
from flaxattn.translation.naming import is_weight

__all__ = ["RULES", "config_hash"]

# What the digests of the sentence pairs tell of.
OF_PAIRS = {"train", "valid", "test", "columns", "held_out", "builtin_pairs"}
OF_PAIRS |= {"invalid_lines", "normalization"}
OF_SCORES = {"bleu_tokenizer"}
OF_LIMIT = {"max_ratio"}  # by which translations are sought while training, too


def config_hash(config: RunConfig) -> str:
    """Twelve hex digits that name the configuration, wherever files and folders lie."""
    return hash_of(config, RULES.places)


def _free(config: RunConfig) -> Set[str]:
    """What changes no model, and what matters only to scores that choose none."""
    metric = config.training.metric
    free = {"samples", "more_valid", *DecodingConfig.__dataclass_fields__} - OF_LIMIT
    free |= OF_SCORES if metric != "bleu" else set()
    return free | (OF_LIMIT if metric == "nll" else set())


def _inputs(config: RunConfig) -> Mapping[str, Sequence[Path]]:
    data = config.data
    train = [name for name in data.train if not is_weight(name)]
    splits = {"--train": train, "--valid": data.valid, "--test": data.test}
    splits |= {"--more-valid": data.more_valid}
    own = tokenizer_path(data)
    found = {option: [data_path(data, x) for x in names] for option, names in splits.items()}
    return found | {"--tokenizer": [own] if own else []}


RULES = RunRules(
    config=RunConfig,
    files=(TOKENIZER,),
    results=RESULTS,
    data="sentence_pairs",
    of_data=OF_PAIRS,
    places={"data_dir", "tokenizer"},
    free=_free,
    inputs=_inputs,
)
