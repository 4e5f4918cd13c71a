"""The synthetic corpus as a dataset: NTU RGB+D's adapter with the generator's classes and captions."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from extract.datasets.classes import load_names
from extract.datasets.clips import DatasetError, LabelText
from extract.datasets.ntu import NTU
from extract.datasets.synthetic.captions import PHRASES
from extract.datasets.synthetic.corpus import CAPTIONS, CLASSES, read_recipe


class Synthetic(NTU):
    """Lists a corpus that ``python -m extract.datasets.synthetic`` made; protocols are NTU's.

    Args:
        root: Folder of the corpus.
        prompts: Prompt set -> template with ``{label}``; the set ``person`` ("a person sits down") is added.

    Raises:
        DatasetError: If the folder holds no corpus; names the command that makes one.
    """

    name = "synthetic"
    how_to_get = "python -m extract.datasets.synthetic --out {root} --clips 240"

    def __init__(self, root: Path, prompts: Mapping[str, str] | None = None):
        super().__init__(root, captions=CAPTIONS, caption_source=self.name, prompts=prompts)
        if read_recipe(Path(root)) is None:
            command = self.how_to_get.format(root=root)
            raise DatasetError(
                f"dataset {self.name!r}: {root} holds no synthetic corpus; make one: {command}"
            )

    def class_names(self) -> list[str]:
        """Class names by label."""
        return load_names(self._root / CLASSES)

    def label_texts(self) -> Iterator[LabelText]:
        """The class names in every prompt, and as a sentence."""
        yield from super().label_texts()
        for label, name in enumerate(self.class_names()):
            yield LabelText(label, name, "person", f"a person {PHRASES[name][0]}")
