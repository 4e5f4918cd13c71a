"""Phase 3: cached features and trained heads -> numbers with intervals, searches, and one HTML report.

To add an index: one class in ``evaluate/index.py`` and one line in ``INDEXES``. To add an evaluation: one
file and one line in ``evaluate/__main__.py``.
"""

INDEXES = {"flat": "evaluate.index:FlatIndex"}
"""How embeddings are searched: name -> ``module:Class``, loaded when used."""
