"""Datasets: a folder of media -> clips, splits and texts. To add one: a class, a line here, and a YAML."""

from extract.datasets.clips import Caption, Clip, Dataset, DatasetError, LabelText, Media, Split
from extract.datasets.config import DatasetConfig, ModalityConfig, dataset_names, load_config, load_dataset

DATASETS = {
    "ntu": "extract.datasets.ntu:NTU",
    "utd-mhad": "extract.datasets.utd_mhad:UTDMHAD",
    "daa": "extract.datasets.daa:DriveAct",
    "msrvtt": "extract.datasets.msrvtt:MSRVTT",
    "youcook2": "extract.datasets.youcook2:YouCook2",
    "lsmdc": "extract.datasets.lsmdc:LSMDC",
    "didemo": "extract.datasets.didemo:DiDeMo",
    "activitynet": "extract.datasets.activitynet:ActivityNet",
    "vatex": "extract.datasets.vatex:VATEX",
    "listing": "extract.datasets.listing:Listing",
    "folder": "extract.datasets.folder:Folder",
    "synthetic": "extract.datasets.synthetic.adapter:Synthetic",
}
"""Adapter name -> where it is; ``adapter:`` of a dataset's YAML names one of them."""

__all__ = [
    "DATASETS",
    "Caption",
    "Clip",
    "Dataset",
    "DatasetConfig",
    "DatasetError",
    "LabelText",
    "Media",
    "ModalityConfig",
    "Split",
    "dataset_names",
    "load_config",
    "load_dataset",
]
