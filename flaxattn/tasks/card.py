"""The model card of a task's model: what it is, from what is known of it and nothing else."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from flaxattn.training.trees import Params

__all__ = ["card_of"]

COMMANDS = {
    "language": 'flaxattn generate model "The old"',
    "labelling": 'flaxattn label model "Words to label."',
    "classification": 'flaxattn classify model "A text."',
    "denoising": "flaxattn train labelling --init-from model",
}
PIPELINES = {
    "language": "text-generation",
    "labelling": "token-classification",
    "classification": "text-classification",
    "denoising": "fill-mask",
}
UNSAID = {"run", "files"}  # of the result: what is for checks

CARD = """---
library_name: flaxattn
pipeline_tag: {pipeline}
tags:
- jax
- flax
---

# {title}

A Transformer of {size:,} parameters, trained with flaxattn.{labels}

With flaxattn and its `train` extra installed, where this folder is called `model`:

```bash
{command}
```

```python
from pathlib import Path

from flaxattn.tasks.storing import load

loaded = load(Path("model"))
print(loaded.task, loaded.architecture, loaded.labels)
```

## Of the run

{result}

## Architecture

{architecture}

Text unlike its training text is served badly, and nothing warns of that.
"""


def card_of(
    about: Mapping[str, Any], params: Params, labels: Sequence[str], result: Mapping[str, Any]
) -> str:
    """The card in Markdown, with the YAML header of the Hugging Face hub.

    Args:
      about: what `config.json` of the exported model says.
    """
    told = {name.replace("_", " "): x for name, x in result.items() if name not in UNSAID}
    return CARD.format(
        pipeline=PIPELINES[about["task"]],
        title=f"Model of the task {about['task']}",
        size=sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        labels=f" Its labels: {', '.join(labels)}." if labels else "",
        command=COMMANDS[about["task"]],
        result=_table(told),
        architecture=_table(about["architecture"]),
    )


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {_cell(x)} |" for name, x in rows.items())]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
