from .augmentation import Augmentation
from .dataset import load_data
from .label_shares import LabelShare, parse_labels
from .labels import select_labels, select_share
from .loader import Loader, calibration_loader
from .names import DATA_SETS
from .preprocessing import Preprocessing
from .tensors import DataSet, Split

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
