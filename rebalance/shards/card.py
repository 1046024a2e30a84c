"""The dataset card, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rebalance.filtering.checks import REGISTRY
from rebalance.shards.records import Manifest

_WIDTH = 120  # characters of a line of the card


def card_text(manifest: Manifest, origin: str, filled: Sequence[str]) -> str:
    """Return the card as Markdown.

    Args:
        manifest: the output's.
        origin: where its images come from, a sentence.
        filled: names of its shards that hold images.
    """
    named = "".join(f"\n  - {shard}" for shard in filled)
    data_files = named if 0 < len(filled) < len(manifest.shards) else ' "*.tar"'
    rows = "\n".join(
        f"| {row.label} | {_cell(row.class_name)} | {row.synthetic} | {row.real} |" for row in manifest.classes
    )
    return f"""---
tags:
- synthetic
- webdataset
task_categories:
- image-classification
configs:
- config_name: default
  data_files:{data_files}
---
# Rebalanced images

{manifest.images} images in {len(manifest.shards)} WebDataset shards, made by
rebalance {manifest.version} (`rebalance-images` on PyPI). Fingerprint `{manifest.fingerprint}`.

| label | class | synthetic | real |
|---|---|---|---|
{rows}

{origin} Do not test a classifier with synthetic images.

Each sample holds an image, `cls` (the label) and `json` with these fields:

- `class`, `label`: the class and its number;
- `synthetic`: false for a real train image;
- `method`: the method that made the image, `filter` for an image that was given, `real` for a real one;
- `origin`: `images` when it was made from the real images that `source` and `reference` name, `latent` when it was
  made from random numbers, `file` when it is a file that `source` names;
- `source_class`, `modality`: class of the source, and its group within that class (-1: none);
- `run`, `seed`, `candidate`: fingerprint and seed of this output, and number of the try (-1: none);
{_scores_line()}
- `width`, `height`: in pixels.
"""


def _scores_line() -> str:
    """Return what the scores of all checks mean."""
    scores = ", ".join(f"`{check.score_name}` ({check.score_doc})" for check in REGISTRY.values())
    return textwrap.fill(f"- `scores`: {scores}; -1: not measured;", _WIDTH, subsequent_indent="  ")


def _cell(text: str) -> str:
    """Return a class name for a Markdown table."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.replace("|", r"\|")
