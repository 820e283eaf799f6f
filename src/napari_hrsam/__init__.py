"""Interactive segmentation of large images: click on a thing, get a precise mask.

The public names below are loaded on first use, so that ``import napari_hrsam`` is quick and needs
neither torch nor napari nor Qt.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_hrsam.engine.embed import EmbedReport
    from napari_hrsam.engine.everything.auto import AutoReport, auto
    from napari_hrsam.engine.everything.pixel_classes import PixelClassifier
    from napari_hrsam.engine.everything.proposals import Proposal, Proposals, propose
    from napari_hrsam.engine.everything.strokes import WantedClass, learn_classes
    from napari_hrsam.engine.image_predictor import DecodedMasks, EncodedImage, ImagePredictor
    from napari_hrsam.engine.over_planes import PlanesReport
    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.engine.remote_encoder import RemoteEncoder
    from napari_hrsam.engine.replay import Replayed, ReplayedObject, replay
    from napari_hrsam.engine.segment import segment
    from napari_hrsam.engine.session import DrawnObjects, Session
    from napari_hrsam.errors import HRSAMError
    from napari_hrsam.geometry import Box
    from napari_hrsam.modeling.checkpoints import load_model
    from napari_hrsam.modeling.registry import ModelInfo, list_models
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.plugin.contrib.image_layers import image_layers
    from napari_hrsam.plugin.panel.console import segment_in
    from napari_hrsam.prompts import Prompts
    from napari_hrsam.storage.embeddings.store import EmbeddingStore
    from napari_hrsam.storage.export.coco import export_coco
    from napari_hrsam.storage.export.geojson import export_geojson
    from napari_hrsam.storage.export.geopackage import export_geopackage
    from napari_hrsam.storage.export.source import Exported
    from napari_hrsam.storage.export.table import export_csv
    from napari_hrsam.storage.export.tiff import export_tiff
    from napari_hrsam.storage.images.opening import open_image
    from napari_hrsam.storage.images.tile_source import ArrayImage, PyramidImage
    from napari_hrsam.storage.importing.coco import import_coco
    from napari_hrsam.storage.importing.geojson import import_geojson
    from napari_hrsam.storage.importing.objects import Imported
    from napari_hrsam.storage.label_image import (
        LabelImage,
        LabelWriter,
        create_labels,
        open_labels,
    )
    from napari_hrsam.storage.labels.array_labels import ArrayLabels
    from napari_hrsam.storage.labels.check import LabelsReport, verify_labels
    from napari_hrsam.storage.labels.compact import Compacted, compact_labels
    from napari_hrsam.storage.labels.edits import DrawnAs, DrawnObject, Edit, History
    from napari_hrsam.storage.labels.objects import ObjectRow
    from napari_hrsam.storage.labels.properties import ObjectClass
    from napari_hrsam.training.fine_tune import fine_tune
    from napari_hrsam.training.fine_tuned import ClickScore, FineTuned
    from napari_hrsam.training.settings import FineTuneConfig

__version__ = "0.2.0"

__all__ = [
    "ArrayImage",
    "ArrayLabels",
    "AutoReport",
    "Box",
    "ClickScore",
    "Compacted",
    "DecodedMasks",
    "DrawnAs",
    "DrawnObject",
    "DrawnObjects",
    "Edit",
    "EmbedReport",
    "EmbeddingStore",
    "EncodedImage",
    "Exported",
    "FineTuneConfig",
    "FineTuned",
    "HRSAMError",
    "History",
    "ImagePredictor",
    "Imported",
    "LabelImage",
    "LabelWriter",
    "LabelsReport",
    "ModelInfo",
    "ObjectClass",
    "ObjectRow",
    "PixelClassifier",
    "PlanesReport",
    "Prediction",
    "Prompts",
    "Proposal",
    "Proposals",
    "PyramidImage",
    "RemoteEncoder",
    "Replayed",
    "ReplayedObject",
    "Segmenter",
    "Session",
    "WantedClass",
    "__version__",
    "auto",
    "compact_labels",
    "create_labels",
    "export_coco",
    "export_csv",
    "export_geojson",
    "export_geopackage",
    "export_tiff",
    "fine_tune",
    "image_layers",
    "import_coco",
    "import_geojson",
    "learn_classes",
    "list_models",
    "load_model",
    "open_image",
    "open_labels",
    "propose",
    "replay",
    "segment",
    "segment_in",
    "verify_labels",
]

_HOMES = {
    "ArrayImage": "napari_hrsam.storage.images.tile_source",
    "ArrayLabels": "napari_hrsam.storage.labels.array_labels",
    "AutoReport": "napari_hrsam.engine.everything.auto",
    "Box": "napari_hrsam.geometry",
    "ClickScore": "napari_hrsam.training.fine_tuned",
    "Compacted": "napari_hrsam.storage.labels.compact",
    "DecodedMasks": "napari_hrsam.engine.image_predictor",
    "DrawnObject": "napari_hrsam.storage.labels.edits",
    "DrawnObjects": "napari_hrsam.engine.session",
    "DrawnAs": "napari_hrsam.storage.labels.edits",
    "Edit": "napari_hrsam.storage.labels.edits",
    "EmbedReport": "napari_hrsam.engine.embed",
    "EmbeddingStore": "napari_hrsam.storage.embeddings.store",
    "RemoteEncoder": "napari_hrsam.engine.remote_encoder",
    "EncodedImage": "napari_hrsam.engine.image_predictor",
    "Exported": "napari_hrsam.storage.export.source",
    "FineTuneConfig": "napari_hrsam.training.settings",
    "FineTuned": "napari_hrsam.training.fine_tuned",
    "HRSAMError": "napari_hrsam.errors",
    "History": "napari_hrsam.storage.labels.edits",
    "ImagePredictor": "napari_hrsam.engine.image_predictor",
    "Imported": "napari_hrsam.storage.importing.objects",
    "LabelImage": "napari_hrsam.storage.label_image",
    "LabelWriter": "napari_hrsam.storage.label_image",
    "LabelsReport": "napari_hrsam.storage.labels.check",
    "ModelInfo": "napari_hrsam.modeling.registry",
    "ObjectClass": "napari_hrsam.storage.labels.properties",
    "ObjectRow": "napari_hrsam.storage.labels.objects",
    "PlanesReport": "napari_hrsam.engine.over_planes",
    "Prediction": "napari_hrsam.engine.prediction",
    "Prompts": "napari_hrsam.prompts",
    "Proposal": "napari_hrsam.engine.everything.proposals",
    "PixelClassifier": "napari_hrsam.engine.everything.pixel_classes",
    "Proposals": "napari_hrsam.engine.everything.proposals",
    "WantedClass": "napari_hrsam.engine.everything.strokes",
    "learn_classes": "napari_hrsam.engine.everything.strokes",
    "PyramidImage": "napari_hrsam.storage.images.tile_source",
    "Replayed": "napari_hrsam.engine.replay",
    "ReplayedObject": "napari_hrsam.engine.replay",
    "Segmenter": "napari_hrsam.modeling.segmenter",
    "Session": "napari_hrsam.engine.session",
    "auto": "napari_hrsam.engine.everything.auto",
    "compact_labels": "napari_hrsam.storage.labels.compact",
    "create_labels": "napari_hrsam.storage.label_image",
    "export_coco": "napari_hrsam.storage.export.coco",
    "export_csv": "napari_hrsam.storage.export.table",
    "export_geojson": "napari_hrsam.storage.export.geojson",
    "export_geopackage": "napari_hrsam.storage.export.geopackage",
    "export_tiff": "napari_hrsam.storage.export.tiff",
    "fine_tune": "napari_hrsam.training.fine_tune",
    "image_layers": "napari_hrsam.plugin.contrib.image_layers",
    "import_coco": "napari_hrsam.storage.importing.coco",
    "import_geojson": "napari_hrsam.storage.importing.geojson",
    "list_models": "napari_hrsam.modeling.registry",
    "load_model": "napari_hrsam.modeling.checkpoints",
    "open_image": "napari_hrsam.storage.images.opening",
    "open_labels": "napari_hrsam.storage.label_image",
    "propose": "napari_hrsam.engine.everything.proposals",
    "replay": "napari_hrsam.engine.replay",
    "segment": "napari_hrsam.engine.segment",
    "segment_in": "napari_hrsam.plugin.panel.console",
    "verify_labels": "napari_hrsam.storage.labels.check",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
