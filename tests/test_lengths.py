"""How long translations may be: chosen from the training pairs, kept, and told where it cuts."""

import collections
import dataclasses

import pytest

from configs import PRESETS
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.run import _limited
from flaxattn.translation.text.lengths import EXTRA, choose_ratio, max_target_length, share_longer


def pairs_of(sources, targets):
    return collections.Counter(zip(sources, targets, strict=True))


LETTERS = pairs_of(range(2, 40), [6 * n for n in range(2, 40)])  # 4.5 to 5.8 above the 8
ALIKE = pairs_of(range(2, 40), range(3, 41))


@pytest.mark.parametrize("lengths", [LETTERS, ALIKE, pairs_of([2], [60])])
def test_a_chosen_ratio_is_the_least_half_that_fits_every_target(lengths):
    ratio = choose_ratio(lengths)
    assert share_longer(lengths, ratio) == 0
    assert ratio == 1.5 or share_longer(lengths, ratio - 0.5) > 0
    assert ratio % 0.5 == 0


def test_the_ratio_is_that_of_older_versions_where_it_is_enough():
    assert choose_ratio(ALIKE) == 1.5
    assert max_target_length(7, None) == max_target_length(7, 1.5) == 10 + EXTRA


def test_a_thousandth_of_pairs_that_are_no_translations_changes_nothing():
    wrong = pairs_of([2], [60])
    assert choose_ratio(sum([ALIKE] * 100, wrong + wrong)) == 1.5
    assert choose_ratio(sum([ALIKE] * 10, wrong)) == 26


def test_the_share_of_longer_targets_is_counted_as_decoding_counts():
    lengths = pairs_of([3, 3, 5, 5], [12, 13, 15, 16])
    assert share_longer(lengths, 1.5) == 0.5
    assert [max_target_length(n, 1.5) for n in (3, 5)] == [12, 15]


class Screen:
    def __init__(self):
        self.said, self.warned = [], []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)


@pytest.mark.parametrize(
    "given, lengths, kept, said, warned",
    [
        (None, ALIKE, 1.5, 0, 0),
        (None, LETTERS, 6.0, 1, 0),
        (1.5, ALIKE, 1.5, 0, 0),
        (1.5, LETTERS, 1.5, 0, 1),
        (7.0, LETTERS, 7.0, 0, 0),
    ],
)
def test_a_run_keeps_the_ratio_and_tells_where_it_matters(given, lengths, kept, said, warned):
    screen = Screen()
    decoding = DecodingConfig(max_ratio=given)
    config = _limited(dataclasses.replace(PRESETS["tiny"], decoding=decoding), lengths, screen)
    assert config.decoding.max_ratio == kept
    assert (len(screen.said), len(screen.warned)) == (said, warned)
    if warned:
        assert screen.warned[0].startswith(f"{share_longer(lengths, given):.1%} of the training")


def test_no_preset_names_a_ratio_and_no_minimum_is_above_the_least():
    assert all(preset.decoding.max_ratio is None for preset in PRESETS.values())
    with pytest.raises(ValueError, match=r"min_ratio is 1\.6; expected"):
        DecodingConfig(min_ratio=1.6)
    assert DecodingConfig(min_ratio=1.6, max_ratio=2.0).min_ratio == 1.6
