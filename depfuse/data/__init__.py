"""Data sets as tensors, and loaders that live on the device."""

from depfuse.data.augment import Augmentation
from depfuse.data.dataset import DATA_SETS, load_data
from depfuse.data.labels import LabelShare, parse_labels, select_labels, select_share
from depfuse.data.loader import Loader, calibration_loader
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet, Split

__all__ = [
    "DATA_SETS",
    "Augmentation",
    "DataSet",
    "LabelShare",
    "Loader",
    "Preprocessing",
    "Split",
    "calibration_loader",
    "load_data",
    "parse_labels",
    "select_labels",
    "select_share",
]
