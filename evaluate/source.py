"""Where an evaluation's vectors come from: stored features as they are, or a checkpoint's embeddings."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.errors import FrameBankError
from store.tables import TEXT, TEXTS

if TYPE_CHECKING:
    from align.alignment import Alignment
    from evaluate.trained import Trained
    from store.bank import Bank
    from store.selection import Selection

AUTO = "auto"
AUTO_STEPS = 8  # frames that `auto` keeps of a sequence, in order
AUTO_MOST_VALUES = 100_000  # per clip; above it `auto` takes the mean


class EvaluateError(FrameBankError, ValueError):
    """An evaluation that this bank, protocol or checkpoint cannot give."""


@dataclass(frozen=True)
class Clips:
    """Vectors of one modality's clips.

    Attributes:
        modality: Name.
        items: (n,) clip ids.
        labels: (n,) int64, -1 = none.
        subjects: (n,) object, None where unknown.
        vectors: (n, D) float32; unit rows if a checkpoint made them.
        features: Feature set, field and how it was reduced, for people.
    """

    modality: str
    items: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    vectors: np.ndarray
    features: str

    def __len__(self) -> int:
        return len(self.items)


@dataclass
class Source:
    """One dataset and protocol of a bank, read raw or through a checkpoint. Made by ``open_source``.

    Attributes:
        bank: The bank.
        dataset: Its dataset.
        protocol: None: all clips, no parts.
        alignment: The checkpoint; None: raw features.
        encoders: Modality -> feature set, where it is not the only one (or the checkpoint's).
        fields: Modality -> field, likewise.
        pool: How raw features become one vector: mean, cls, resample:K or auto.
        used: Selections that were read.
        scored: The part that is scored; None: nothing is.
        trained: Trainings that the encoders of what was read went through (:mod:`evaluate.trained`).
    """

    bank: "Bank"
    dataset: str
    protocol: str | None
    alignment: "Alignment | None" = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    pool: str = AUTO
    used: "list[Selection]" = field(default_factory=list)
    scored: str | None = None
    trained: "list[Trained]" = field(default_factory=list)

    @property
    def name(self) -> str:
        """``raw``, or the checkpoint's run."""
        return "raw" if self.alignment is None else f"aligned {self.alignment.directory.name}"

    @property
    def supervision(self) -> list[str]:
        """What told checkpoint and encoders more than which features belong to one clip: captions, labels."""
        own = [] if self.alignment is None else self.alignment.supervision
        return list(dict.fromkeys([*own, *(told for one in self.trained for told in one.supervision)]))

    def place(self, part: str) -> str:
        """Dataset, protocol and part, for people."""
        return f"{self.dataset}, {self.protocol} {part}" if self.protocol else f"{self.dataset}, all clips"

    def require_parts(self, who: str) -> None:
        """Refuse a dataset without a protocol.

        Raises:
            EvaluateError: With the command that gives it one.
        """
        if self.protocol is None:
            raise EvaluateError(
                f"{self.dataset}: {who} needs a protocol with parts; the dataset's adapter gives them, "
                f"python -m extract --dataset {self.dataset} --register-only --bank {self.bank.path}"
            )

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes 0 .. C - 1; numbers where the dataset has none."""
        query = """
            SELECT label, coalesce(max(label_name), label::VARCHAR) AS name FROM (
                SELECT label, label_name FROM clips WHERE dataset = $1
                UNION ALL SELECT label, label_name FROM label_texts WHERE dataset = $1)
            WHERE label >= 0 GROUP BY label ORDER BY label
        """
        known = {row["label"]: row["name"] for row in self.bank.sql(query, [self.dataset]).to_pylist()}
        return [known.get(label, str(label)) for label in range(max(known, default=-1) + 1)]

    @cached_property
    def _sets(self) -> list[tuple[str, str, str, str]]:
        """Dataset, modality, space digest and name of the bank's feature sets."""
        query = "SELECT dataset, modality, space_digest, name FROM feature_sets ORDER BY ALL"
        return [tuple(row.values()) for row in self.bank.sql(query).to_pylist()]

    def modalities(self, asked: str | None = None) -> list[str]:
        """The media modalities to evaluate: those asked for (with commas), else all that can be.

        Raises:
            EvaluateError: If there is none.
        """
        from align.recipe import covered, extract_command

        if asked is not None:
            return [name.strip() for name in asked.split(",") if name.strip()]
        there = [name for name in covered(self.bank, self.dataset) if name != TEXT]
        if self.alignment is not None:
            heads = self.alignment.modalities
            named = [name for name in heads if name not in there and self.media(name) in there]
            there = [name for name in there if {name, name.partition(".")[0]} & {*heads}] + named
        if not there:
            command = extract_command(self.bank, self.dataset, "MODALITY")
            raise EvaluateError(f"{self.bank.path}: no features of {self.dataset} to evaluate; {command}")
        return there

    def clips(self, modality: str, part: str | None) -> Clips:
        """Vectors of the clips of a part (of all clips without a part or protocol), by clip id."""
        selection = self.selection(modality, part)
        self._read(selection)
        vectors, reduced = self._vectors(modality, selection)
        return Clips(
            modality,
            selection.items,
            selection.labels,
            selection.column("subject"),
            vectors,
            f"{selection.feature_set} {selection.field.name} {reduced}",
        )

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32 vectors of texts that the bank has encoded, in order.

        Raises:
            MissingTextError: If some are not encoded, with the command that does it.
            SpaceError: If the checkpoint's text head is for another encoder.
        """
        from store.tables import text_id

        encoder = self.encoder(TEXT)
        features = self.bank.texts(texts, encoder)
        one = self.bank.select(TEXTS, TEXT, encoder=encoder, items=[text_id(texts[0])])
        self._read(one)
        return self.embed_texts(features, one.space_digest)

    def _read(self, selection: "Selection") -> None:
        """Note what is read; encoders that were trained on the part to score are refused, others named.

        Raises:
            LeakageError: As ``guard``.
        """
        from evaluate.leakage import refuse_seen
        from evaluate.trained import trainings

        self.used.append(selection)
        for one in trainings(self.bank, selection):
            if one in self.trained:
                continue
            print(f"{selection.modality} {selection.feature_set}: {one.told()}", file=sys.stderr)
            if self.scored is not None:
                refuse_seen(self, self.scored, str(one.path), one.rows())
            self.trained.append(one)

    def embed_texts(self, features: np.ndarray, space_digest: str) -> np.ndarray:
        """Text features (n, D) through the checkpoint's head, if there is one."""
        return features if self.alignment is None else self.alignment.embed_texts(features, space_digest)

    def space(self, modality: str) -> str:
        """The space digest of the features that are read of a modality."""
        return self.selection(modality).space_digest

    def selection(self, modality: str, part: str | None = None) -> "Selection":
        """The features that are read of a modality; of all clips, or of a part."""
        return self.bank.select(
            TEXTS if modality == TEXT else self.dataset,
            self.media(modality),
            encoder=self.encoder(modality),
            field=self._field(modality),
            protocol=self.protocol if part is not None else None,
            part=part if self.protocol is not None else None,
        )

    def captions(
        self, items: Sequence[str], part: str | None = None, source: str | None = None
    ) -> dict[str, list[str]]:
        """The unique captions of each of these clips; clips without any are absent.

        With a part, only those that the protocol counts there, where the dataset says which (MSR-VTT's 1k-A
        test has one sentence a clip, of the twenty that there are). Generated captions are no ground truth:
        they come only if their source is named.
        """
        query = """
            WITH counted AS (
                SELECT (config -> 'caption_sources' -> $2 -> $3)::VARCHAR[] AS sources
                FROM datasets WHERE name = $1)
            SELECT DISTINCT clip_id, text FROM captions JOIN texts USING (text_id), counted
            WHERE dataset = $1 AND CASE WHEN $4 IS NOT NULL THEN source = $4
                WHEN sources IS NOT NULL THEN list_contains(sources, source)
                ELSE coalesce(source, '') NOT IN (SELECT source FROM captioned WHERE dataset = $1) END
            ORDER BY ALL
        """
        wanted, found = set(items), dict[str, list[str]]()
        for row in self.bank.sql(query, [self.dataset, self.protocol, part, source]).to_pylist():
            if row["clip_id"] in wanted:
                found.setdefault(row["clip_id"], []).append(row["text"])
        return found

    def label_texts(self) -> dict[str, list[tuple[int, str]]]:
        """Prompt set -> (label, text) pairs, by label."""
        query = """
            SELECT DISTINCT prompt_set, label, text FROM label_texts JOIN texts USING (text_id)
            WHERE dataset = ? ORDER BY ALL
        """
        found: dict[str, list[tuple[int, str]]] = {}
        for row in self.bank.sql(query, [self.dataset]).to_pylist():
            found.setdefault(row["prompt_set"], []).append((row["label"], row["text"]))
        return found

    def media(self, modality: str) -> str:
        """Whose features are read: the modality itself, or what the checkpoint aligned under this name."""
        return modality if self.alignment is None else self.alignment.media_of(modality)

    def encoder(self, modality: str) -> str | None:
        """The feature set to read: the one named, else one that the checkpoint's head takes."""
        if modality in self.encoders or self.alignment is None:
            return self.encoders.get(modality)
        own = self.alignment.settings(modality)
        where = (TEXTS if modality == TEXT else self.dataset, self.media(modality), own["space_digest"])
        fitting = [name for *found, name in self._sets if tuple(found) == where]
        if not fitting and "extract" in own:
            self.alignment.check_space(modality, "", f"what {self.bank.path} has")
        if own["feature_set"] in fitting:
            return str(own["feature_set"])
        return fitting[0] if len(fitting) == 1 else str(own["encoder"])

    def _field(self, modality: str) -> str | None:
        if modality in self.fields or self.alignment is None:
            return self.fields.get(modality)
        return str(self.alignment.settings(modality)["field"])

    def _vectors(self, modality: str, selection: "Selection") -> tuple[np.ndarray, str]:
        if self.alignment is not None:
            return self.alignment.embed(modality, selection), "aligned"
        reduce = auto_pool(selection) if self.pool == AUTO else self.pool
        values = selection.materialise(reduce)
        if isinstance(values, tuple):
            raise EvaluateError(
                f"--pool: {self.pool!r} gives no vector; accepted: mean, cls, resample:K, auto"
            )
        return values.reshape(len(values), -1).astype(np.float32), reduce


def auto_pool(selection: "Selection") -> str:
    """``resample:8`` for sequences (their order in time tells actions apart), ``mean`` for single vectors."""
    size = selection.field.tokens * selection.field.dim
    if int(np.median(selection.lengths)) > 1 and AUTO_STEPS * size <= AUTO_MOST_VALUES:
        return f"resample:{AUTO_STEPS}"
    return "mean" if size > AUTO_MOST_VALUES or selection.field.tokens == 1 else "resample:1"


def open_sources(
    bank: str | Path,
    dataset: str | None,
    protocol: str | None,
    checkpoint: str | None,
    part: str | None = "test",
    encoders: Mapping[str, str] | None = None,
    fields: Mapping[str, str] | None = None,
    pool: str = AUTO,
) -> list[Source]:
    """Open the bank and, if given, checkpoints (with commas).

    Checkpoints that saw the part to score are refused; with ``part`` None nothing is scored.

    Raises:
        EvaluateError, LeakageError, UnknownNameError: Saying what is there, or what to run.
    """
    from align.recipe import choose_dataset, choose_protocol
    from evaluate.leakage import guard
    from store.bank import Bank

    opened = Bank.open(bank)
    name = choose_dataset(opened, dataset)
    rules = choose_protocol(opened, name, protocol)
    names: list[str | None] = [one.strip() for one in checkpoint.split(",")] if checkpoint else [None]
    sources = []
    for one in names:
        alignment = None
        if one is not None:
            from align import load

            alignment = load(one, opened.path)
        source = Source(opened, name, rules, alignment, encoders or {}, fields or {}, pool, scored=part)
        if part is not None:
            guard(source, part)
        sources.append(source)
    return sources


def encode_seconds_saved(bank: "Bank", used: "Sequence[Selection]") -> float:
    """Seconds that encoding the feature sets of these selections took when it was done, once.

    Extractions record the metric ``extract/encode_seconds``; several runs that filled one set add up.
    """
    query = """
        SELECT detail ->> 'dataset' AS dataset, detail ->> 'modality' AS modality,
            detail ->> 'feature_set' AS feature_set, sum(value) AS seconds
        FROM metrics WHERE name = 'extract/encode_seconds' GROUP BY ALL
    """
    sets = {(one.dataset, one.modality, one.feature_set) for one in used}
    rows = bank.sql(query).to_pylist()
    names = ("dataset", "modality", "feature_set")
    return sum((row["seconds"] for row in rows if tuple(row[name] for name in names) in sets), 0.0)


def in_seconds(value: Any) -> str:
    """For messages: ``72.3`` -> ``72 s``."""
    return f"{float(value):.0f} s" if value >= 10 else f"{float(value):.1f} s"
