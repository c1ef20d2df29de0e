"""What all web pages begin with: colours in light and dark, and fonts. Each adds its own style."""

import importlib.resources

__all__ = ["style_of"]


def style_of(package: str, name: str) -> str:
    """The style that all pages have, and behind it the file of that name in a package."""
    files = ((__package__, "pages.css"), (package, name))
    texts = (importlib.resources.files(of).joinpath(file) for of, file in files)
    return "\n".join(text.read_text(encoding="utf-8") for text in texts)
