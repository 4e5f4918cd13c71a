"""What reading the media showed, clip by clip: kept in the catalog, so that damaged files can be found."""

import threading

from extract.worker import DecodeJob, Report
from store.bank import Bank
from store.catalog import Catalog, CatalogBusyError

PORTION = 5000  # clips between two transactions: a killed run loses at most so many, never a feature
_PATIENCE_SECONDS = 2.0  # for a busy catalog; the next portion takes them along


class Readings:
    """Collects the reports of one dataset and modality, and writes them in portions, from any thread."""

    def __init__(self, bank: Bank, dataset: str, modality: str):
        self.dataset, self.modality = dataset, modality
        self._bank = Bank(bank.path, Catalog(bank.catalog.path, timeout_seconds=_PATIENCE_SECONDS))
        self._rows: list[dict[str, object]] = []
        self._lock = threading.Lock()

    def add(self, clip_id: str, media_key: str | None, job: DecodeJob, report: Report) -> bool:
        """Note one clip; returns whether a portion is full, and :meth:`record` due.

        Of files that are read together (``rgb+depth``) nothing is noted: each has a modality of its own.
        """
        if job.beside:
            return False
        height, width = report.size or (None, None)
        declared, fps = report.declared_frames, report.fps
        row: dict[str, object] = {
            "clip_id": clip_id,
            "modality": job.modality,
            "media_key": media_key,
            "declared_frames": declared,
            "decoded_frames": report.decoded_frames,
            "fps": fps,
            "width": width,
            "height": height,
            "duration_seconds": declared / fps if declared and fps else None,
        }
        with self._lock:
            self._rows.append(row)
            return len(self._rows) % PORTION == 0

    def record(self) -> None:
        """Write what was collected; if somebody holds the catalog, it is kept for the next time."""
        import pyarrow as pa

        with self._lock:
            rows, self._rows = self._rows, []
        if not rows:
            return
        # Of a clip's views the last counts: a table has one row a clip.
        latest = {row["clip_id"]: row for row in rows}
        try:
            self._bank.record_media(self.dataset, pa.Table.from_pylist(list(latest.values())))
        except CatalogBusyError:
            with self._lock:
                self._rows = rows + self._rows
