"""Pages for people: self-contained HTML from a template of a room and the frame that all pages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, **content: Any) -> str:
    """The page of a template that extends page.html.jinja. Filters: `count` (1,234), `share(whole)` (12.3%), `yaml`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda n: f"{n:,}"
    environment.filters["share"] = lambda part, whole: f"{part / whole:.1%}" if whole else "–"
    environment.filters["yaml"] = _yaml
    return environment.get_template(template.name).render(**content)


def _yaml(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))
