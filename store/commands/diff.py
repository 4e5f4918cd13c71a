"""``python -m store diff``: why two feature sets differ."""


def diff(first: str, second: str, bank: str = "bank") -> int:
    """Print every configured value in which two feature sets differ.

    Args:
        first: ``<encoder>@<fingerprint>``; a unique beginning is enough.
        second: Likewise.
        bank: The bank's folder.

    Returns:
        0 if they are the same, 1 if they differ.
    """
    import json

    import pyarrow as pa

    from store.bank import Bank
    from store.text_table import formatted

    opened = Bank.open(bank)
    (mine, my_name), (theirs, their_name) = _spec(opened, first), _spec(opened, second)
    rows = mine.differences(theirs)
    same_space = mine.space_digest == theirs.space_digest
    print(
        f"{'same' if same_space else 'another'} space ({mine.space_digest}"
        + (")" if same_space else f", {theirs.space_digest})")
        + ("; their vectors are comparable" if same_space else "; their vectors are not comparable")
    )
    if rows:
        columns = [
            [key for key, _, _ in rows],
            [json.dumps(a) for _, a, _ in rows],
            [json.dumps(b) for _, _, b in rows],
        ]
        print(formatted(pa.table(columns, names=["value", my_name, their_name])))
    return 1 if rows else 0


def _spec(bank, name: str):
    """The one configuration whose set's name begins with ``name``."""
    from store.errors import FrameBankError, UnknownNameError
    from store.spec import FeatureSpec

    found = bank.sql(
        "SELECT DISTINCT name, spec::VARCHAR AS spec FROM feature_sets WHERE starts_with(name, ?) ORDER BY 1",
        [name],
    ).to_pylist()
    if not found:
        known = bank.sql("SELECT DISTINCT name FROM feature_sets ORDER BY name")["name"].to_pylist()
        raise UnknownNameError("diff", "feature set", name, known)
    if len(found) > 1:
        raise FrameBankError(
            f"diff: {name!r} is ambiguous; give more of one of: {', '.join(row['name'] for row in found)}"
        )
    return FeatureSpec.from_json(found[0]["spec"]), found[0]["name"]
