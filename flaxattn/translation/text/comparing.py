"""Whether one system's translations are better than another's, or by chance alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flaxattn.translation.text.scoring import metrics_of

__all__ = ["Compared", "compare"]


class Compared(NamedTuple):
    """One metric of one system, beside those of the baseline."""

    system: str
    metric: str
    value: float
    """0 to 100, of the whole text."""
    interval: float
    """Half of the width of the 95% interval around the mean of the samples."""
    p: float | None
    """How likely so great a difference is, if both systems were alike; None: of the baseline."""
    signature: str


def compare(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: str = "13a",
    samples: int = 1000,
) -> list[Compared]:
    """Paired bootstrap resampling (Koehn 2004) of BLEU, BLEU lower-cased and chrF, by SacreBLEU.

    The seed is SacreBLEU's, 12345, or what SACREBLEU_SEED says.

    Args:
      systems: translations by name, two or more; the first are the baseline.
      references: one or more for each translation, each a whole text.
      samples: texts drawn with replacement from the whole.

    Raises:
      ValueError if there are fewer than two systems, or not as many lines of each.

    >>> good, bad = ["the old man sees a dog ."] * 9, ["the man"] * 9
    >>> found = compare({"bad": bad, "good": good}, [good], samples=100)
    >>> [(x.system, round(x.value), x.p and x.p < 0.05) for x in found if x.metric == "bleu"]
    [('bad', 0, None), ('good', 100, True)]
    """
    from sacrebleu.significance import PairedTest

    if len(systems) < 2:
        raise ValueError(f"{len(systems)} system to compare; expected a baseline and another.")
    lengths = {len(lines) for lines in (*systems.values(), *references)}
    if len(lengths) != 1 or not references or 0 in lengths:
        raise ValueError(
            f"translations and references have {sorted(lengths)} lines; expected as many of each, "
            "and some."
        )
    baseline, found = next(iter(systems.values())), []
    for metric, how in metrics_of(tokenizer).items():
        test = PairedTest(
            [(name, list(lines)) for name, lines in systems.items()],
            {metric: how},
            [list(lines) for lines in references],
            "bs",
            samples,
        )
        signatures, scores = test()
        ((name, signature),) = signatures.items()
        results: list[Any] = scores[name]
        for (system, lines), x in zip(systems.items(), results, strict=True):
            same = lines == baseline and x.p_value is not None
            p = 1.0 if same else x.p_value  # SacreBLEU says 0.001 of no difference at all
            found.append(Compared(system, metric, x.score, x.ci, p, str(signature)))
    return found
