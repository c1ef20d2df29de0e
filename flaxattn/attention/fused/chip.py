"""The chip that programs are made for, as far as there are kernels for it."""

import jax

__all__ = ["PLATFORMS", "chip", "device_kind", "platform_of"]

PLATFORMS = {"hopper": "cuda", "tpu": "tpu"}
"""What jax calls the platforms of their programs."""

_HOPPER = ("H100", "H200", "H800", "H20", "GH200")


def chip() -> str | None:
    """The name of the kernels for it; None: there are none.

    It is that of the mesh in use if this names a device, as when programs are compiled where there
    is none, else jax's default device, and else the first of its default backend. A program that
    turns out to be for another platform gets loops, see `operation.py`.
    """
    kind = device_kind()
    if kind.startswith("TPU"):
        return "tpu"
    return "hopper" if any(name in kind.split() for name in _HOPPER) else None


def platform_of(chip: str | None) -> str | None:
    """What jax calls the platform of a chip's programs."""
    return None if chip is None else PLATFORMS[chip]


def device_kind() -> str:
    """What the device is called that `chip` is about."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    chosen = device if device is not None else jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None:
        chosen = jax.devices()[0]
    elif isinstance(chosen, str):
        chosen = jax.devices(chosen)[0]
    kind: str = chosen.device_kind
    return kind
