"""Phase 3: cached features and trained heads -> numbers with intervals, searches, and one HTML report.

To add an index: one class like those in ``evaluate/approximate.py`` and one line in ``INDEXES``. To add a
fusion: one class like those in ``evaluate/fusion_linear.py`` and one line in ``FUSIONS``. To add an
evaluation: one file and one line in ``evaluate/__main__.py``.
"""

INDEXES = {
    "flat": "evaluate.index:FlatIndex",
    "exact": "evaluate.exact:ExactIndex",
    "sq8": "evaluate.approximate:Sq8Index",
    "ivf-flat": "evaluate.approximate:IvfFlatIndex",
    "ivf-pq": "evaluate.approximate:IvfPqIndex",
    "hnsw": "evaluate.approximate:HnswIndex",
}
"""How embeddings are searched: name -> ``module:Class``, loaded when used."""

FUSIONS = {
    "late": "evaluate.fusion_linear:Late",
    "concat": "evaluate.fusion_linear:Concatenated",
    "mean": "evaluate.fusion_linear:MeanEmbedding",
    "attention": "evaluate.fusion_attention:Attention",
    "cmvra": "evaluate.fusion_cmvra:CMVRA",
}
"""How modalities are put together: name -> ``module:Class`` (``evaluate.fusion.Fusion``), loaded at use."""
