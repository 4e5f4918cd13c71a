"""``python -m store gc``: adopt what killed runs finished, remove what nobody needs."""


def gc(bank: str = "bank") -> None:
    """Commit finished segments that killed runs left, and remove unfinished, replaced and unwanted ones.

    Nothing of a running writer is touched, and nothing that a running reader may hold.

    Args:
        bank: The bank's folder.
    """
    from store.bank import Bank
    from store.garbage import collect
    from store.text_table import byte_text

    done = collect(Bank.open(bank))
    for what, names in (
        ("adopted: finished segments of killed runs", done.adopted),
        ("removed: unfinished segments", done.unfinished),
        ("removed: segments that newer ones replaced", [*done.unwanted, *done.replaced]),
        ("ended: runs whose process is gone", done.ended),
    ):
        print(f"{len(names):6d}  {what}")
    print(f"{byte_text(done.nbytes)} freed")
