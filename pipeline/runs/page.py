"""HTML pages: one file that loads nothing from elsewhere."""

import base64
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.base.files import atomic_write
from pipeline.runs.report import NAMES


def write_page(file: Path, template: str, context: dict[str, Any]) -> None:
    """Fill in a template of `pipeline/pages/`. All values are escaped, and the page may run only its own script."""
    loader = jinja2.PackageLoader("pipeline", "pages")
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, **options)
    environment.filters["data_uri"] = lambda data, kind: f"data:{kind};base64,{base64.b64encode(data).decode()}"
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
    environment.filters["signed"] = lambda value: f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
    for name in ("page.css", "page.js"):
        text = loader.get_source(environment, name)[0]
        kind, digest = name.removeprefix("page."), hashlib.sha256(text.encode()).digest()
        context |= {kind: Markup(text), f"{kind}_hash": base64.b64encode(digest).decode()}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("kinema", "torch", "timm")]
    page = environment.get_template(template).render(context, names=NAMES, versions=versions)
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
