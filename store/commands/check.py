"""``python -m store check``: every byte of every segment against its checksum; damage named by clip."""

import sys


def check(bank: str = "bank", dataset: str | None = None, forget: bool = False) -> int:
    """Verify all segments against their checksums, their manifests and the catalog.

    Args:
        bank: The bank's folder.
        dataset: Only this dataset's segments.
        forget: Drop the damaged clips from the catalog, so that the next extraction makes them again.

    Returns:
        0 if everything is sound, 1 if not.
    """
    from store.bank import Bank
    from store.inspection import damage_table, forget_damage, inspect_bank
    from store.text_table import byte_text, formatted

    opened = Bank.open(bank)
    report = inspect_bank(opened, dataset)
    print(f"{report.segments} segments, {byte_text(report.nbytes)} read, {len(report.damage)} problems")
    if not report.damage:
        return 0
    for line in report.messages:
        print(line, file=sys.stderr)
    print(formatted(damage_table(report)))
    if forget:
        dropped = forget_damage(opened, report)
        print(f"{dropped} rows dropped; extracting again makes them anew")
    else:
        print(
            f"`python -m store check --forget --bank {bank}` drops these clips from the catalog;"
            " extracting again makes them anew",
            file=sys.stderr,
        )
    return 1
