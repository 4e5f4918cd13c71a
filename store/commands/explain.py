"""``python -m store explain``: where one clip's features come from, and who used them."""


def explain(clip: str, bank: str = "bank") -> None:
    """Trace a clip: file, frames and times, view, encoder, segment and offset, and every run that used it.

    Args:
        clip: ``<dataset>/<clip id>``, or a clip id that only one dataset has, or ``_texts/<text or its id>``.
        bank: The bank's folder.
    """
    from store.bank import Bank
    from store.lineage import lines

    for line in lines(Bank.open(bank), clip):
        print(line)
