"""The documentation site: Sphinx reads these names."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

from flaxattn.drawing.gallery import GALLERY, MASKS, SCORES, save

HERE = Path(__file__).parent
ABOUT = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
INIT = (HERE.parent / "flaxattn" / "__init__.py").read_text("utf-8")

project = ABOUT["name"]
release = re.search(r'__version__ = "(.*)"', INIT).group(1)  # type: ignore[union-attr]
author = project_copyright = "the flaxattn authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = False

# Every word in single backquotes in a docstring is code.
default_role = "code"
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
# Types of other packages have no page here, nor have names inside this one.
nitpick_ignore_regex = [("py:.*", r"(?!flaxattn\.).*"), ("py:.*", r"flaxattn\.(?:\w+\.)+\w+")]

ABOVE_MASKS = """
Left, what each query sees; right, the blocks that the plan knows to be empty, partial and full.
`python -m flaxattn.drawing` draws them in a terminal, and any other mask you name. In Python:
`flaxattn.drawing.picture.show(mask, q_len, kv_len)`, which a notebook displays.
"""
ABOVE_SCORES = """
Left, what becomes of a logit of 0, the darker the higher; right, of other logits, between the last
query and keys near and far. In Python:
`flaxattn.drawing.picture.show_score(score, q_len, kv_len, mask=mask)`.
"""
PICTURES = HERE / "_gallery"  # drawn at every build, ignored by git


def setup(app: Any) -> None:
    """Draws the gallery, and has docstrings and signatures read as they are meant."""
    save(PICTURES)
    page = ["# Gallery"]
    for title, above, entries in (("Masks", ABOVE_MASKS, MASKS), ("Scores", ABOVE_SCORES, SCORES)):
        page += [f"## {title}", above]
        page += [f"### {n}\n\n{entry.words}\n\n{picture(n, '')}" for n, entry in entries.items()]
    (PICTURES / "gallery.md").write_text("\n".join(page), "utf-8")
    app.connect("source-read", add_pictures)
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("autodoc-process-signature", shorten_signature)


def picture(name: str, folder: str) -> str:
    """The picture of an entry of the gallery, and below it the code that it was drawn from."""
    entry = GALLERY[name]
    under = f", under `{entry.under}`" if name in SCORES and entry.under != "full()" else ""
    return f"```{{figure}} {folder}{name}.png\n`{entry.code}`{under}\n```\n"


def add_pictures(app: Any, page: str, source: list[str]) -> None:
    """Puts its picture below the heading of each pattern, which has its numbers there already."""
    if page in ("masks", "scores"):
        headings = re.compile(rf"^### ({'|'.join(GALLERY)})$", re.MULTILINE)
        source[0] = headings.sub(lambda m: f"{m[0]}\n\n{picture(m[1], '_gallery/')}", source[0])


def read_sections(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Reads the sections of a docstring; that of an attribute is a sentence and has none."""
    if what not in ("attribute", "property"):
        config = Config()
        lines[:] = GoogleDocstring(list(as_fields(lines)), config, app, what, name, of).lines()


def as_fields(lines: list[str]) -> Iterator[str]:
    """Makes fields of "Returns:" and "Raises:", below which our docstrings have sentences."""
    heading = ""
    for line in lines:
        line = re.sub(r": ([A-Z])\.$", r": \1\.", line)  # "D." would begin a numbered list
        if line in ("Returns:", "Raises:"):
            heading = f":{line[:-1].lower()}: "
        elif heading and line.strip():
            yield heading + line.strip()
            heading = ""
        else:  # what a linen module calls its attributes are the arguments of its constructor
            yield line.replace("Attributes:", "Args:")


def shorten_signature(
    app: Any, what: str, name: str, of: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any]:
    """Without the type `Any`, and the fields `parent` and `name` that every linen module has."""
    if signature:
        signature = re.sub(r", parent: .*\)$", ")", signature)
        signature = re.sub(r": (~typing\.)?Any\b", "", signature)
        signature = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", signature)
    return signature, None if returns in ("~typing.Any", "None") else returns
