"""A synthetic NTU RGB+D corpus: an articulated figure filmed by three cameras, in real files of NTU's layout.

``python -m extract.datasets.synthetic --out DIR --clips N`` makes one, ``generate`` does so from Python.
"""

from extract.datasets.synthetic.actions import ACTIONS
from extract.datasets.synthetic.corpus import generate
from extract.datasets.synthetic.names import CorpusError, clip_names

__all__ = ["ACTIONS", "CorpusError", "clip_names", "generate"]
