"""What identifies a feature set: resolved configuration, digested to a name; no library versions."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from store.errors import FrameBankError

DIGEST_CHARACTERS = 12
ENCODER_NAME = re.compile(r"[a-z0-9._+-]+")
FIELD_DTYPES = ("float16", "bfloat16")
AUTO = "auto"
MISSING = "(absent)"


class SpecError(FrameBankError, ValueError):
    """A feature set's configuration holds something that has no one canonical JSON form."""


def plain_json(value: Any, where: str = "value") -> Any:
    """Reduce ``value`` to dicts, lists, strings, numbers, booleans and None, in one canonical form.

    Tuples become lists and whole floats become ints, so that ``4.0`` from a command line and ``4`` from a
    YAML file are one configuration. Numpy scalars become numbers.

    Args:
        value: What to reduce.
        where: Dotted name that an error mentions.

    Raises:
        SpecError: For anything else: a set, an object, NaN, a key that is no string.
    """
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            raise SpecError(f"{where}: keys {list(value)!r}; only strings are accepted as keys")
        return {key: plain_json(value[key], f"{where}.{key}") for key in value}
    if isinstance(value, (list, tuple)):
        return [plain_json(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not isinstance(value, bool):
        if value != value or value in (float("inf"), float("-inf")):
            raise SpecError(f"{where}: {value!r}; only finite numbers are accepted")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, (str, bool, int)):
        return value
    raise SpecError(f"{where}: {value!r} of type {type(value).__name__}; only JSON values are accepted")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal configurations give equal characters."""
    return json.dumps(plain_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """The first 12 hex digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_CHARACTERS]


@dataclass(frozen=True)
class FieldSpec:
    """One named output of an encoder, stored as ``[frames, tokens, dim]``; frames vary from clip to clip."""

    name: str
    tokens: int
    dim: int
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if not self.name or self.tokens < 1 or self.dim < 1:
            raise SpecError(f"field {self.name!r}: tokens {self.tokens}, dim {self.dim}; both must be >= 1")
        if self.dtype not in FIELD_DTYPES:
            raise SpecError(f"field {self.name!r}: dtype {self.dtype!r}; accepted: {', '.join(FIELD_DTYPES)}")

    def as_json(self) -> dict[str, Any]:
        """The field as a plain dict, as manifests hold it."""
        return {"name": self.name, "tokens": self.tokens, "dim": self.dim, "dtype": self.dtype}


@dataclass(frozen=True, eq=False)
class FeatureSpec:
    """The configuration that a feature set was written with.

    Attributes:
        encoder: Name, ``[a-z0-9._+-]+``.
        space: Encoder name and revision, weights digest, preprocessing: vectors of one space are comparable.
        reading: Frame sampling, precision, reader settings and revisions.
    """

    encoder: str
    space: Mapping[str, Any]
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not ENCODER_NAME.fullmatch(self.encoder):
            raise SpecError(f"encoder {self.encoder!r}: accepted are the characters a-z 0-9 . _ + -")
        object.__setattr__(self, "space", plain_json(self.space, "space"))
        object.__setattr__(self, "reading", plain_json(self.reading, "reading"))

    @property
    def space_digest(self) -> str:
        """12 hex digits that say which vector space the features live in."""
        return digest(self.space)

    @property
    def fingerprint(self) -> str:
        """12 hex digits of space and reading together."""
        return digest({"space": self.space, "reading": self.reading})

    @property
    def name(self) -> str:
        """``<encoder>@<fingerprint>``."""
        return f"{self.encoder}@{self.fingerprint}"

    @property
    def precision(self) -> str | None:
        """What ``reading`` says of the precision; ``auto`` is not yet resolved."""
        value = self.reading.get("precision")
        return None if value is None else str(value)

    def with_precision(self, precision: str) -> "FeatureSpec":
        """The same configuration at another precision."""
        return replace(self, reading={**self.reading, "precision": precision})

    def differences(self, other: "FeatureSpec") -> list[tuple[str, Any, Any]]:
        """Each value in which the two differ, as ``(dotted key, mine, theirs)``, sorted by key."""
        mine, theirs = dict(_leaves(self.as_json())), dict(_leaves(other.as_json()))
        keys = sorted(mine.keys() | theirs.keys())
        pairs = ((key, mine.get(key, MISSING), theirs.get(key, MISSING)) for key in keys)
        return [(key, a, b) for key, a, b in pairs if a != b]

    def as_json(self) -> dict[str, Any]:
        """``{"encoder", "space", "reading"}`` as manifests and the catalog hold it."""
        return {"encoder": self.encoder, "space": self.space, "reading": self.reading}

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> "FeatureSpec":
        """Read back what ``as_json`` gave, as a dict or as JSON text."""
        data = json.loads(value) if isinstance(value, str) else value
        return cls(data["encoder"], data["space"], data["reading"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FeatureSpec):
            return NotImplemented
        return canonical_json(self.as_json()) == canonical_json(other.as_json())

    def __hash__(self) -> int:
        return hash(self.name)


def resolved_spec(spec: FeatureSpec) -> FeatureSpec:
    """``spec`` itself.

    Raises:
        SpecError: If its precision is still ``auto``: a fingerprint needs resolved values.
    """
    if spec.precision == AUTO:
        raise SpecError(f"{spec.encoder}: precision is still 'auto'; call bank.resolve_precision first")
    return spec


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested dicts to dotted keys; lists and empty dicts are leaves."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
