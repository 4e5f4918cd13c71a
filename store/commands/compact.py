"""``python -m store compact``: merge small segments, rewrite those that are partly dead."""


def compact(bank: str = "bank", megabytes: int = 128) -> None:
    """Merge small segments into larger ones, and rewrite segments much of which newer rows replaced.

    The replaced segments stay on disk until no reader can hold them; ``gc`` removes what is left then.

    Args:
        bank: The bank's folder.
        megabytes: Size of the segments to make.
    """
    from store.bank import Bank
    from store.compact import compact as merge_all
    from store.compact import remove_replaced
    from store.errors import FrameBankError

    if megabytes < 1:
        raise FrameBankError(f"compact: megabytes {megabytes}; at least 1, 64 to 256 is sensible")
    opened = Bank.open(bank)
    merged = merge_all(opened, megabytes << 20)
    removed = remove_replaced(opened)
    left = opened.sql("SELECT count(*) AS n FROM segments WHERE state = 'replaced'")["n"][0].as_py()
    print(f"{merged} segments rewritten, {len(removed)} removed, {left} replaced ones wait for their readers")
