"""What a user gets: the public names, a light import, a typed package, one version."""

import ast
import contextlib
import importlib.metadata
import importlib.resources
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import types

import pytest

import flaxattn

ROOT = pathlib.Path(flaxattn.__file__).parents[1]
PUBLIC = {
    "BlockPlan",
    "Blocks",
    "Bounds",
    "CachePosition",
    "Decoder",
    "DecoderOnly",
    "DecoderLayer",
    "Encoder",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "EncoderLayer",
    "EncoderOnly",
    "FeedForward",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "Mask",
    "MaskedTokens",
    "MultiHeadAttention",
    "RelativeBias",
    "Rotary",
    "Score",
    "TextLabels",
    "TokenLabels",
    "TransformerConfig",
    "YarnScaling",
    "alibi",
    "alibi_slopes",
    "attend",
    "attend_with_stats",
    "attend_over",
    "Layout",
    "attend_head",
    "attention_weights",
    "build_masks",
    "causal",
    "chunked",
    "dilated",
    "dropout_keys",
    "explain",
    "from_dense",
    "full",
    "global_tokens",
    "index_leaf",
    "keep_freed_memory",
    "leaf",
    "lengths",
    "mask_type",
    "merge",
    "number_leaf",
    "prefix",
    "prepare",
    "relative_bias",
    "relative_buckets",
    "relative_positions",
    "rotary",
    "same_segment",
    "score",
    "score_type",
    "segment_positions",
    "shift_right",
    "sinusoidal",
    "sliding_window",
    "softcap",
    "temperature",
    "valid",
    "where",
}


def modules_after(statement):
    """The modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_public_names_are_these():
    names = {
        name
        for name, value in vars(flaxattn).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert names == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_has_a_docstring_of_its_own(name):
    value = getattr(flaxattn, name)
    text = (vars(value).get("__doc__") if isinstance(value, type) else value.__doc__) or ""
    assert len(text.strip()) > 20
    assert not text.startswith(f"{name}(")  # what dataclasses write where nobody did


def test_public_names_are_defined_in_the_library():
    homes = {name: getattr(flaxattn, name).__module__ for name in PUBLIC}
    assert not {name: home for name, home in homes.items() if not home.startswith("flaxattn.")}


@pytest.mark.thorough
def test_import_loads_neither_the_training_side_nor_its_packages():
    loaded = modules_after("import flaxattn")
    heavy = {"sentencepiece", "sacrebleu", "tyro", "tensorboardX", "matplotlib"}
    assert "flaxattn.models" in loaded
    assert not {name for name in loaded if name.split(".")[0] in heavy}
    assert not {
        name for name in loaded if name.startswith(("flaxattn.training", "flaxattn.translation"))
    }


@pytest.mark.thorough
def test_import_loads_nothing_beyond_flax_optax_and_chex():
    ours = modules_after("import flaxattn")
    theirs = modules_after("import flax.linen, optax, chex")
    packages = {name.split(".")[0] for name in ours - theirs}
    others = {name for name in packages if name not in sys.stdlib_module_names}
    assert others <= {"flaxattn", "jax"}  # of jax its export, which flax need not have loaded


# ---- What modules say of themselves ----------------------------------------------------------


def parsed(*rooms):
    """The modules of rooms, parsed, by their names."""
    folder = pathlib.Path(flaxattn.__file__).parent
    paths = [path for room in rooms for path in sorted((folder / room).rglob("*.py"))]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: ast.parse(path.read_text()) for name, path in named.items()}


def test_nobody_prints_but_what_was_asked_for():
    """What else a person should know, `Screen` tells: it shows control characters."""
    printing = {
        name
        for name, module in parsed(".").items()
        for node in ast.walk(module)
        if isinstance(node, ast.Name) and node.id == "print"
    }
    own = {name for name in printing if not name.endswith("__main__")}
    of_translation = ("align", "compare", "score")
    assert own == {
        "flaxattn.tasks.commands",
        *(f"flaxattn.translation.commands.{name}" for name in of_translation),
    }


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("flaxattn").joinpath("py.typed").is_file()


def test_the_version_is_that_of_the_installed_package():
    assert flaxattn.__version__.count(".") == 2
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        assert importlib.metadata.version("flaxattn") == flaxattn.__version__


def test_the_changelog_mentions_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert flaxattn.__version__ in text


# ---- What CI installs ------------------------------------------------------------------------


def pins(name):
    text = (ROOT / name).read_text().lower()
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def requirements():
    """Every package named in pyproject.toml, and its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    lists = [project["project"]["dependencies"], groups["test"], groups["dev"]]
    extras = project["project"]["optional-dependencies"]
    lists += [extras["train"], extras["serve"]]
    wanted = [x for names in lists for x in names if isinstance(x, str) and ">=" in x]
    return dict(x.lower().split(">=") for x in wanted)


def test_every_package_and_tool_of_ci_is_pinned():
    wanted = requirements()
    assert {"jax", "pytest", "ruff", "safetensors", "starlette"} <= wanted.keys()
    assert not {*wanted, "uv"} - pins("constraints.txt").keys()


def test_the_oldest_versions_tested_are_those_that_are_promised():
    version = lambda text: [*map(int, re.findall(r"\d+", text))]  # noqa: E731
    lowest = pins("constraints-lowest.txt")
    for name, bound in requirements().items():
        found, promised = version(lowest[name]), version(bound)
        assert found[: len(promised)] == promised, name
