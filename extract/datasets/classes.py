"""Class lists, and the texts that stand for a class."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from extract.datasets.clips import DatasetError, LabelText

# A bare name, and the template that M2CLIP and most zero-shot video work use.
PROMPTS = {"name": "{label}", "video": "a video of {label}"}


def prompt_texts(names: Sequence[str], prompts: Mapping[str, str] | None = None) -> Iterator[LabelText]:
    """Every class name in every template (prompt set -> text with ``{label}`` in it).

    Raises:
        DatasetError: If a template has no ``{label}``: all classes would get the same text.
    """
    for prompt_set, template in (PROMPTS if prompts is None else prompts).items():
        if "{label}" not in template:
            raise DatasetError(f"prompts: {prompt_set!r} is {template!r}; it needs {{label}} in it")
        for label, name in enumerate(names):
            yield LabelText(label, name, prompt_set, template.replace("{label}", name))


def load_names(path: Path) -> list[str]:
    """Class names by label from a file.

    Accepts a YAML list (or a mapping with ``names``), a text file with a name a line, or lines / CSV of
    ``id name`` or ``id,name`` with ids from 0 (a header line is skipped).

    Raises:
        DatasetError: If it is missing, empty, repeats a name, or its ids are not 0, 1, 2, ...
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: class list cannot be read ({error}); give a UTF-8 text file") from None
    names = _from_yaml(text) if path.suffix in (".yaml", ".yml") else _from_lines(path, text.splitlines())
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        problem = f"names {repeated[0]!r} twice" if repeated else "names no class"
        raise DatasetError(f"{path}: class list {problem}; one different name a class is needed")
    return names


def _from_yaml(text: str) -> list[str]:
    content = yaml.safe_load(text)
    return [str(name) for name in (content["names"] if isinstance(content, dict) else content)]


def _from_lines(path: Path, lines: Sequence[str]) -> list[str]:
    lines = [line.strip() for line in lines if line.strip()]
    pairs = [_pair(line) for line in lines]
    body = pairs[1:] if pairs and pairs[0] is None else pairs  # a header: "id,name"
    found = dict(pair for pair in body if pair is not None)
    if not body or None in body:
        return lines  # names only
    if sorted(found) != list(range(len(body))):
        raise DatasetError(
            f"{path}: class list has ids {min(found)} to {max(found)} for {len(body)} names; "
            "ids 0, 1, 2, ... are needed"
        )
    return [found[number] for number in range(len(found))]


def _pair(line: str) -> tuple[int, str] | None:
    match = re.fullmatch(r"(\d+)[\s,]+(\S.*)", line)
    return (int(match[1]), match[2].strip(" ,\"'")) if match else None
