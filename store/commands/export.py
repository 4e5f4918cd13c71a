"""``python -m store export``: Parquet snapshots of the catalog for notebooks, or one selection as .npz."""

from pathlib import Path


def export(
    out: Path,
    bank: str = "bank",
    dataset: str | None = None,
    modality: str | None = None,
    encoder: str | None = None,
    field: str | None = None,
    where: str | None = None,
    view: int = 0,
    protocol: str | None = None,
    part: str | None = None,
    reduce: str = "none",
) -> None:
    """Write every table and view of the catalog as Parquet into a folder, or a selection into an .npz file.

    Without a dataset, ``out`` is a folder that gets ``clips.parquet``, ``coverage.parquet``, ... With one it
    is an .npz file with items, labels, values, and for reduce none also offsets and times_seconds.

    Args:
        out: The folder, or the .npz file.
        bank: The bank's folder.
        dataset: Whose features; none: the catalog.
        modality: Which modality's.
        encoder: Which encoder's, or ``<encoder>@<fingerprint>``; may be left out if there is only one.
        field: Which field; may be left out if there is only one.
        where: SQL condition over the columns of clips.
        view: Number of the view.
        protocol: Only clips of this protocol.
        part: Only its part.
        reduce: none, mean, cls or resample:K.
    """
    from store.bank import Bank
    from store.errors import FrameBankError
    from store.snapshots import export_catalog, export_selection

    opened = Bank.open(bank)
    if dataset is None:
        for path, rows in export_catalog(opened, out):
            print(f"{rows:10d}  {path}")
        return
    if modality is None:
        raise FrameBankError(f"export: --dataset {dataset} without --modality; name the modality to export")
    selection = opened.select(dataset, modality, encoder, field, where, view, protocol, part)
    print(f"{len(selection):10d}  {export_selection(selection, out, reduce)}")
