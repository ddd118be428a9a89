"""The step that turns pages into text: HTML (html.py) and Markdown (markdown.py). Llama 3, section 3.1.1 (L3-1.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from min_llm.config import option
from min_llm.data.curate import html, markdown
from min_llm.data.curate.document import Document, Drop, Outcome

MARKDOWN = (".md", ".markdown", ".mdown")


@dataclass(frozen=True)
class Extract:
    """Replace HTML pages by their text, and take the markers out of Markdown."""

    html: Literal["auto", "always", "never"] = option("auto", "auto: what begins like a page")
    markdown: Literal["auto", "always", "never"] = option("auto", "auto: documents named or addressed *.md")

    def __call__(self, documents: list[Document]) -> list[Outcome]:
        return [self._outcome(document) for document in documents]

    def _outcome(self, document: Document) -> Outcome:
        if self.html == "always" or (self.html == "auto" and html.looks_like(document.text)):
            text = html.extract(document.text)
        elif self.markdown == "always" or (self.markdown == "auto" and _is_markdown(document)):
            text = markdown.strip(document.text)
        else:
            return document
        if not text.strip():
            return Drop("no text in the page", f"{len(document.text):,} characters of markup")
        return document if text == document.text else dataclasses.replace(document, text=text)


def _is_markdown(document: Document) -> bool:
    return document.name.lower().endswith(MARKDOWN) or document.url.lower().endswith(MARKDOWN)
