"""The features that published figures rest on: which the bank has, and what to run for the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evaluate.published import EXTRACT, Published
from evaluate.source import EvaluateError
from store.tables import TEXT, TEXTS

if TYPE_CHECKING:
    from store.bank import Bank

RANDOM = "-random"  # how the names of encoders without weights end


class MissingError(EvaluateError):
    """Features that an experiment needs and the bank lacks; the message is the commands that make them."""


@dataclass
class Place:
    """Where the figures are reproduced.

    Attributes:
        bank: The bank.
        dataset: Its dataset.
        published: The figures and their conditions.
        setting: Whose weights the features are of.
        encoders: Modality -> feature set, as the user told.
        missing: The commands that make what is missing, once each, in order.
        refused: Experiments that cannot be done here, and why.
        sets: Modality -> feature set, of the experiment at hand.
    """

    bank: "Bank"
    dataset: str
    published: Published
    setting: str
    encoders: Mapping[str, str]
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    sets: dict[str, str] = field(default_factory=dict)

    def feature_sets(self, wanted: Mapping[str, tuple[str, str]]) -> dict[str, str]:
        """Of each name's modality and encoder the feature set; of random weights where there is no other.

        Raises:
            MissingError: If some are not there.
            EvaluateError: If there are several and none was chosen.
        """
        found = {name: self._feature_set(*which) for name, which in wanted.items()}
        missing = [self.command(*wanted[name]) for name, one in found.items() if one is None]
        if missing:
            raise MissingError("\n".join(missing))
        self.sets = {name: one for name, one in found.items() if one is not None}
        return self.sets

    def _feature_set(self, modality: str, encoder: str) -> str | None:
        owner = TEXTS if modality == TEXT else self.dataset
        query = "SELECT name, encoder FROM feature_sets WHERE dataset = ? AND modality = ? ORDER BY name"
        rows = self.bank.sql(query, [owner, modality]).to_pylist()
        chosen = self.encoders.get(modality, "")
        for exact in (encoder, encoder + RANDOM):
            fitting = [row["name"] for row in rows if row["encoder"] == exact]
            names = [name for name in fitting if name.startswith(chosen)]
            if len(names) > 1:
                raise EvaluateError(
                    f"reproduce: several feature sets of {modality}: {', '.join(names)}; choose one: "
                    f"""--encoders '{{"{modality}": "{names[0]}"}}'"""
                )
            if names:
                return str(names[0])
        return None

    def command(self, modality: str, encoder: str) -> str:
        """What to run for features of a modality by an encoder, and the file that it needs."""
        base = f"python -m extract --dataset {self.dataset} --modality {modality} --bank {self.bank.path}"
        conditions = self.published.settings[self.setting]
        official = conditions["weights"].get(encoder)
        if official is None:
            return f"{base} --encoder {encoder}"
        recipes = (name for name in conditions["extract"] if extracts(name, modality, encoder))
        recipe = next(recipes, None)
        how = f"--config configs/extract/{recipe}.yaml" if recipe else f"--encoder {encoder} --preset cmvra"
        return f"{base} {how} --weights {official['file']}    ({official['at']})"


def extracts(recipe: str, modality: str, encoder: str) -> bool:
    """Whether a recipe of configs/extract encodes a modality by this encoder."""
    import yaml

    own = yaml.safe_load((EXTRACT / f"{recipe}.yaml").read_text(encoding="utf-8"))["modalities"]
    return bool(own.get(modality, {}).get("encoder") == encoder)
