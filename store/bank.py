"""The bank: one folder with a catalog and features, and everything one does with it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.catalog import CATALOG_FILE, DEFAULT_TIMEOUT_SECONDS, Catalog, Notify, say
from store.errors import FrameBankError
from store.places import FEATURES
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from store.runs import Run
    from store.selection import Selection
    from store.writer import FeatureWriter

DEFAULT_PRECISION = "fp32"


class NotABankError(FrameBankError, FileNotFoundError):
    """The folder is no bank; the message holds the command that makes one."""


class Bank:
    """A feature store in one folder. Open it with ``Bank.open``.

    Attributes:
        path: The folder.
        catalog: Its DuckDB file.
    """

    def __init__(self, path: Path, catalog: Catalog):
        self.path = path
        self.catalog = catalog

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        create: bool = False,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        notify: Notify = say,
    ) -> "Bank":
        """Open the bank in folder ``path``; one that cannot be written is opened for reading only.

        Args:
            path: The folder.
            create: Make it (and the folder) if it is no bank yet.
            timeout_seconds: How long to wait while another process has the catalog open.
            notify: Gets one line when such a wait gets long.

        Raises:
            NotABankError: If there is none.
            NewerCatalogError: If a newer FrameBank or DuckDB wrote its catalog.
            CatalogBusyError: If the catalog is held open for too long.
        """
        folder = Path(path).resolve()
        file = folder / CATALOG_FILE
        if not file.exists():
            if (folder / FEATURES).is_dir() and not create:
                raise NotABankError(
                    f"{path}: has features but no {CATALOG_FILE}; `python -m store reindex --bank {path}`"
                )
            if not create:
                raise NotABankError(
                    f"{path}: not a bank (no {CATALOG_FILE}); "
                    f"`python -m extract --dataset NAME --bank {path}` makes one"
                )
            _make_folder(folder)
        catalog = Catalog(file, not _writable(folder, file), timeout_seconds, notify)
        if create and not catalog.read_only:
            catalog.create()
        else:
            catalog.migrate()
        return cls(folder, catalog)

    def __repr__(self) -> str:
        return f"<Bank {self.path}{' (read-only)' if self.catalog.read_only else ''}>"

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> "pa.Table":
        """Run any query over the catalog, read-only.

        Raises:
            QueryError: If DuckDB refuses it.
        """
        return self.catalog.read(query, params)

    def datasets(self) -> "pa.Table":
        """name, adapter, root and config (JSON text) of the registered datasets, by name."""
        return self.sql("SELECT name, adapter, root, config::VARCHAR AS config FROM datasets ORDER BY name")

    def register(
        self,
        dataset: str,
        *,
        clips: "pa.Table",
        media: "pa.Table | None" = None,
        splits: "pa.Table | None" = None,
        captions: "pa.Table | None" = None,
        label_texts: "pa.Table | None" = None,
        root: str | os.PathLike[str] | None = None,
        adapter: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> dict[str, int]:
        """Add or update a dataset; what is unchanged is not written again.

        Clips that are not in ``clips`` stay as they are. For those that are, ``media`` and ``captions``, if
        given, replace what they had (generated and imported captions stay); ``splits`` replace the protocols,
        ``label_texts`` the prompt sets that they name. Columns: ``store.tables.COLUMNS``; absent optional
        ones become null.

        Args:
            dataset: Its name.
            clips: clip_id, label, label_name, subject, camera, setup, replication, start_seconds,
                end_seconds, attributes (JSON text, struct or map).
            media: clip_id, modality, path (relative to root), reader, options (JSON), ...
            splits: protocol, clip_id, part.
            captions: clip_id, text, source, start_seconds, end_seconds.
            label_texts: label, label_name, prompt_set, text.
            root: Folder of the media; the last one given is kept.
            adapter: Name of the dataset's adapter.
            config: Its resolved configuration.

        Returns:
            Counts: clips, new, changed, media, splits, captions, label_texts, changed_media, new_texts.

        Raises:
            DuplicateClipError: If a clip id occurs twice.
            LabelError: If a label is outside ``label_texts`` or negative.
            RegisterError: For wrong columns, or rows of clips that are not listed.
        """
        from store.register import register

        adapter = adapter or (str(config["adapter"]) if config and config.get("adapter") else None)
        folder = None if root is None else os.fspath(root)
        return register(
            self.catalog, dataset, clips, media, splits, captions, label_texts, adapter, folder, config
        )

    def resolve_precision(
        self, dataset: str, modality: str, spec: FeatureSpec, default: str = DEFAULT_PRECISION
    ) -> FeatureSpec:
        """Replace precision ``auto`` by that of the only otherwise equal set here, else by ``default``."""
        from store.plan import resolve_precision

        return resolve_precision(self.catalog, dataset, modality, spec, default)

    def plan(
        self,
        dataset: str,
        modality: str,
        spec: FeatureSpec,
        fields: Sequence[str],
        views: int = 1,
        where: str | None = None,
        retry_failed: bool = True,
    ) -> "pa.Table":
        """The (item_id, view, field) rows that are missing, with how to read their media.

        A media file that was replaced makes its clip missing again. Clips without media of the modality are
        not planned; the view ``coverage`` shows them. First commits what a killed run left finished.

        Args:
            dataset: Its name; ``_texts`` plans all texts.
            modality: For example ``depth``, or ``rgb+depth`` for clips that have both.
            spec: The feature set's configuration, precision resolved.
            fields: Names of the fields wanted.
            views: How many views of each clip.
            where: SQL condition over the columns of ``clips`` (of ``texts`` for ``_texts``).
            retry_failed: Whether clips that failed before, and have not changed, are tried again.

        Returns:
            item_id, view, field, path, reader, options, start_seconds, end_seconds, frames, fps,
            duration_seconds, media_key; for texts: item_id, view, field, text. Sorted. Of several modalities
            at once (``rgb+depth``) these are the first one's, and ``beside`` lists the other files
            (modality, path, reader, options, start_seconds, end_seconds); ``media_key`` covers all of them.
        """
        from store.commit import FeatureSet
        from store.plan import missing

        owner = FeatureSet(dataset, modality, spec)
        self._adopt(owner)
        return missing(self.catalog, owner, fields, views, where, retry_failed)

    def _adopt(self, owner: Any) -> None:
        from store.adopt import adopt
        from store.places import set_directory

        if not self.catalog.read_only:
            folder = set_directory(self.path, owner.dataset, owner.modality, owner.name)
            adopt(self.path, self.catalog, folder)

    def writer(
        self,
        dataset: str,
        modality: str,
        spec: FeatureSpec,
        fields: Sequence[FieldSpec],
        **options: Any,
    ) -> "FeatureWriter":
        """A context manager that stores features; see ``store.writer.FeatureWriter``.

        Args:
            dataset: Its name.
            modality: For example ``depth``.
            spec: The feature set's configuration, precision resolved.
            fields: Shapes and dtypes of the fields to be written.
            **options: max_bytes, max_seconds, commit_timeout, notify.

        Raises:
            ReadOnlyBankError: If the bank cannot be written.
        """
        from store.writer import FeatureWriter

        return FeatureWriter(self, dataset, modality, spec, fields, **options)

    def select(
        self,
        dataset: str,
        modality: str,
        encoder: str | None = None,
        field: str | None = None,
        where: str | None = None,
        view: int = 0,
        protocol: str | None = None,
        part: str | None = None,
        items: "Sequence[str] | np.ndarray | None" = None,
    ) -> "Selection":
        """Features of the clips that fit, sorted by clip id (or in the order of ``items``).

        Features of media that were replaced since are left out: they are stale.

        Args:
            dataset: Its name; ``_texts`` for texts.
            modality: For example ``depth``.
            encoder: Name, or ``name@fingerprint`` or its beginning; None: the only set there is.
            field: None: the only one, else ``embedding``, ``cls`` or ``tokens``, whichever comes first.
            where: SQL condition over the columns of ``clips``, and ``protocol`` and ``part`` with a protocol.
            view: Number of the view.
            protocol: Only clips that it places in a part.
            part: Only clips of this part.
            items: Only these, in this order; those without features are left out.

        Raises:
            UnknownNameError: For a dataset, set, field, protocol or part that is not there.
            NoFeaturesError: If the dataset has no features of the modality.
            AmbiguousError: If several sets or fields fit.
            EmptySelectionError: If no clip fits.
            QueryError: If ``where`` is no SQL.
        """
        from store.select import select

        return select(self, dataset, modality, encoder, field, where, view, protocol, part, items)

    def add_texts(self, texts: Sequence[str]) -> list[str]:
        """Add texts to be encoded; their ids, in order. Known ones are not written again."""
        from store.texts import add_texts

        return add_texts(self, texts)

    def texts(self, texts: Sequence[str], encoder: str | None = None) -> "np.ndarray":
        """Features of texts, encoded before: (n, D) float32, in order, repeats allowed.

        Raises:
            MissingTextError: If some are not encoded; the message holds the command.
        """
        from store.texts import text_features

        return text_features(self, texts, encoder)

    def record_run(self, command: str, config: Mapping[str, Any], notify: Notify = say) -> "Run":
        """A context manager that records a run, its metrics and the feature sets it used.

        Args:
            command: For example ``align``.
            config: The resolved configuration, JSON-able.
            notify: Gets one line if the catalog stays busy at the end.
        """
        from store.runs import Run

        return Run(self.path, self.catalog, command, config, notify)

    def failures(self, dataset: str | None = None, modality: str | None = None) -> "pa.Table":
        """Clips that failed and have not succeeded since, with stage, error and number of attempts."""
        return self.sql(
            "SELECT dataset, clip_id, modality, encoder, feature_set, stage, error, attempts, last_at"
            " FROM failures WHERE dataset = coalesce(?, dataset) AND modality = coalesce(?, modality)"
            " ORDER BY ALL",
            [dataset, modality],
        )

    def record_media(self, dataset: str, media: "pa.Table") -> None:
        """Keep what reading the files showed; columns: ``store.tables.COLUMNS["media_read"]``."""
        from store.views import record_media

        record_media(self.catalog, dataset, media)

    def record_views(self, dataset: str, views: "pa.Table") -> None:
        """Keep the crop boxes, flips and windows of views (``store.tables.COLUMNS["views"]``)."""
        from store.views import record_views

        record_views(self.catalog, dataset, views)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotABankError(
            f"{folder}: cannot make a bank here ({error.strerror}); try another --bank"
        ) from error


def _writable(folder: Path, file: Path) -> bool:
    return os.access(folder, os.W_OK) and (not file.exists() or os.access(file, os.W_OK))


__all__ = ["TEXT", "TEXTS", "Bank", "NotABankError"]
