"""What every run depends on, whatever it learns: settings as plain frozen data, kept as JSON."""

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from flaxattn.ranges import FieldError, Range, check_fields
from flaxattn.training.mesh import mesh_sizes
from flaxattn.training.storage.json_data import from_data, from_older, same_fields

__all__ = [
    "NO_OPTION",
    "Config",
    "Count",
    "CountOrZero",
    "RunConfig",
    "Seed",
    "Share",
    "Size",
    "Steps",
    "StepsOrZero",
    "TrainingConfig",
    "at_home",
    "config_hash",
    "flat",
    "from_json",
    "portable",
    "to_json",
    "with_training",
]

NO_OPTION = {"option": False}  # of fields that a run keeps but nobody gives

# Steps are counted exactly in float32, seeds in int32; what is kept or shown has no end but sense.
Steps = Annotated[int, Range(1, 10_000_000)]
StepsOrZero = Annotated[int, Range(0, 10_000_000)]
Count = Annotated[int, Range(1, 10_000)]
CountOrZero = Annotated[int, Range(0, 10_000)]
Size = Annotated[int, Range(1, 1_000_000)]
Share = Annotated[float, Range(0, 1, below=True)]
Seed = Annotated[int, Range(0, 2**31 - 1)]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How any model is trained."""

    steps: Steps = 1000
    """Updates of the parameters. With others than the preset's, the counts of steps below scale
    unless they are given; more of them continue a run that has ended."""
    batch_size: Size = 32
    """Rows in a batch, all devices and microbatches together."""
    microbatches: Size = 1
    """Parts a batch is computed in, one after another, to save memory; they divide `batch_size`."""
    learning_rate: Annotated[float, Range(0, 10, above=True)] = 2e-3
    """The highest rate, reached at the end of the warm-up."""
    warmup_steps: StepsOrZero = 400
    """Steps of linear warm-up; then the rate falls with the inverse square root of the step."""
    cooldown_steps: StepsOrZero = 0
    """The last steps, in which the rate falls linearly to zero."""
    optimizer: typing.Literal["adamw", "muon"] = "adamw"
    """Which one. muon orthogonalises the updates of matrices, so that all their directions learn at
    one rate, and leaves Adam the rest: embeddings, norms, biases."""
    muon_rate: Annotated[float, Range(0, 10, above=True)] = 0.02
    """The highest rate of matrices with muon, instead of `learning_rate`, in whose shape it rises
    and falls."""
    adam_b1: Share = 0.9
    """Adam's decay of the mean of gradients."""
    adam_b2: Share = 0.98
    """Adam's decay of the mean of squared gradients."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.0
    """Decoupled weight decay."""
    clip_norm: Annotated[float, Range(0, 1e9, above=True)] = 1.0
    """Gradients are scaled down to at most this global norm."""
    ema_decay: Share = 0.0
    """Decay per step of a moving average of the parameters, which is validated and used instead
    of them. 0: none."""
    seed: Seed = 0
    """Of all that is random: parameters, the order of the data, dropout."""
    log_every: Steps = 20
    """Steps between lines of the log."""
    valid_every: Steps = 500
    """Steps between validations; checkpoints are written then, too."""
    patience: CountOrZero = 0
    """Validations without a better metric after which training stops early. 0: never."""
    keep_checkpoints: Count = 2
    """How many of the latest checkpoints are kept, to resume from."""
    average: Count = 1
    """How many models, one for each validation, are averaged in the end."""
    select: typing.Literal["best", "last"] = "best"
    """Which models those are."""
    mesh: str = ""
    """The mesh of all devices, e.g. data=2,fsdp=2,model=2,context=2. Rows are spread over data and
    fsdp, parameters over fsdp and model, the positions of a row over context; what data is not
    given, it takes. It may be another when a run goes on."""
    init_from: str = ""
    """Folder of a run from whose model training starts: its parameters and architecture, and the
    tokenizer where there is one."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by path, e.g. encoder or */layer_0/*; see --dry-run."""
    lora: CountOrZero = 0
    """The rank of adapters (LoRA), which alone are trained beside the parameters of `init_from`.
    0: none, all parameters are trained."""
    lora_on: tuple[str, ...] = ("query", "value")
    """Kernels that have an adapter, by path as `freeze`, from any step of it on, e.g. query|value
    or decoder."""
    lora_alpha: Annotated[float, Range(0, 1e6)] = 0.0
    """What adapters add is multiplied by this and divided by their rank. 0: by neither."""
    ended_at: tuple[Steps, ...] = dataclasses.field(default=(), metadata=NO_OPTION)
    """The `steps` with which the run had ended each time before it was continued."""
    cooled_for: tuple[StepsOrZero, ...] = dataclasses.field(default=(), metadata=NO_OPTION)
    """The `cooldown_steps` it had then."""

    def __post_init__(self) -> None:
        check_fields(self)
        mesh_sizes(self.mesh)
        if self.batch_size % self.microbatches:
            raise FieldError(
                "batch_size",
                f"is {self.batch_size}; expected a multiple of microbatches, {self.microbatches}.",
            )
        if self.lora and (self.freeze or not self.init_from):
            raise FieldError(
                "lora",
                f"is {self.lora}; expected init_from beside it, the run whose parameters stay, "
                "and no freeze.",
            )
        ends = (*self.ended_at, self.steps)
        if sorted(set(ends)) != [*ends] or len(self.cooled_for) != len(self.ended_at):
            raise FieldError(
                "ended_at", f"is {self.ended_at}; expected rising numbers below steps."
            )

    @property
    def lora_scale(self) -> float:
        """What the product of an adapter is multiplied by."""
        return self.lora_alpha / self.lora if self.lora_alpha else 1.0


class RunConfig(Protocol):
    """All the settings of a run: a frozen dataclass of these two, and parts of the task's own.

    No two fields of its parts are called alike: each is an option of the command line.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def output(self) -> str:
        """The run's folder."""

    @property
    def training(self) -> TrainingConfig:
        """How it is trained; a task may have fields of its own there."""


Config = TypeVar("Config", bound=RunConfig)


def at_home(config: Config) -> Config:
    """The configuration with `~` in the folders of runs replaced by what it stands for."""
    start = os.path.expanduser(config.training.init_from)
    training = dataclasses.replace(config.training, init_from=start)
    output = os.path.expanduser(config.output)
    return dataclasses.replace(config, output=output, training=training)


def with_training(config: Config, training: TrainingConfig) -> Config:
    """The configuration, trained otherwise."""
    return dataclasses.replace(config, training=training)


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON-able data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: type[Config], data: object, where: str) -> Config:
    """The configuration that `to_json` made data of; what an older one had not has its default.

    Args:
      kind: its dataclass.
      where: the file it is from, for errors.

    Raises:
      ValueError that names the part and the field.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    given = same_fields(data, names, where)
    read = {
        name: from_older(hints[name], given[name], f"{where}, {name}")
        if dataclasses.is_dataclass(hints[name])
        else given[name]
        for name in names
    }
    return from_data(kind, read, where)


def config_hash(config: RunConfig, places: Set[str] = frozenset()) -> str:
    """Twelve hex digits that name the configuration, wherever files and folders lie.

    Args:
      places: as in `portable`.
    """
    data = portable(to_json(config), places)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def portable(data: dict[str, Any], places: Set[str] = frozenset()) -> dict[str, Any]:
    """A configuration as JSON-able data, less the places that differ from machine to machine.

    The mesh is such a place.

    Of the run that training starts from, the name of the folder is kept. Of a run that was never
    continued nothing is said of that, either, nor of adapters where there are none.

    Args:
      places: the task's own settings that are folders.
    """
    training = data["training"]
    start = training["init_from"]
    training = training | {"init_from": Path(start).absolute().name if start else ""}
    unsaid = {"mesh", *places} | (set() if training["ended_at"] else {"ended_at", "cooled_for"})
    unsaid |= set() if training["lora"] else {"lora", "lora_on", "lora_alpha"}
    parts = data | {"training": training}
    return {name: _without(part, unsaid) for name, part in parts.items() if name != "output"}


def flat(data: dict[str, Any]) -> dict[str, Any]:
    """The settings of all parts of a configuration by their names alone.

    >>> flat({"output": "runs/a", "training": {"steps": 3}, "data": {"train": []}})
    {'output': 'runs/a', 'steps': 3, 'train': []}
    """
    found: dict[str, Any] = {}
    for name, value in data.items():
        part = value if isinstance(value, dict) else {name: value}
        if twice := found.keys() & part.keys():
            raise ValueError(f"{', '.join(twice)}: two settings have this name; expected one.")
        found |= part
    return found


def _without(part: object, names: Set[str]) -> object:
    if not isinstance(part, dict):
        return part
    return {name: value for name, value in part.items() if name not in names}
