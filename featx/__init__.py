"""featx: deep features you can trust, and linear heads on top of them.

    import featx

    config = featx.ExtractConfig(backbone="alexnet", layers="fc6,fc7")
    featx.extract_features("photos", "photos.h5", config)
    featx.verify_file("photos.h5")
    X, y = featx.open_features("photos.h5").xy("fc7")

Everything here is loaded when it is first used: `import featx` imports neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from featx.artifacts.evaluation import EvaluateReport
    from featx.artifacts.finetuned_run import FinetuneReport
    from featx.artifacts.head_file import FitReport
    from featx.artifacts.probe_folder import ProbeReport
    from featx.commands.check import CheckReport, check_source
    from featx.commands.compare.fuse import fuse_heads
    from featx.commands.compare.heads import compare_heads
    from featx.commands.compare.pairs import compare_pairs
    from featx.commands.compare.rdm import representational_dissimilarity
    from featx.commands.compare.similarity import compare_representations
    from featx.commands.evaluate import evaluate_head
    from featx.commands.exchange.average import average_features
    from featx.commands.exchange.concat import ConcatReport, concat_features
    from featx.commands.exchange.export import ExportReport, export_features
    from featx.commands.exchange.import_parquet import ImportReport, import_parquet
    from featx.commands.exchange.onnx_export import OnnxReport, export_onnx
    from featx.commands.exchange.ray_extract import RayReport, extract_with_ray
    from featx.commands.extract import ExtractReport, extract_features
    from featx.commands.finetune import finetune_network
    from featx.commands.fit import fit_softmax, fit_svm
    from featx.commands.inspect import InspectReport, inspect_file
    from featx.commands.layers import LayersReport, list_layers
    from featx.commands.merge import MergeReport, merge_shards
    from featx.commands.predict import PredictReport, predict_images, predict_with_heads
    from featx.commands.probe import probe_layers
    from featx.commands.show.class_image import show_class_image
    from featx.commands.show.correspondence import show_correspondence
    from featx.commands.show.evolution import show_evolution
    from featx.commands.show.filters import show_filters
    from featx.commands.show.invariance import show_invariance
    from featx.commands.show.map import show_map
    from featx.commands.show.maps import show_maps
    from featx.commands.show.neighbors import show_neighbors
    from featx.commands.show.occlusion import show_occlusion
    from featx.commands.show.report import PageReport, write_report
    from featx.commands.show.saliency import show_saliency
    from featx.commands.show.top import show_top
    from featx.commands.verify import VerifyReport, verify_file
    from featx.errors import FeatxError, ImageError
    from featx.extraction.in_memory.extractor import Extractor
    from featx.extraction.in_memory.predictor import Prediction, Predictor
    from featx.heads.estimators import LinearSVM, Softmax
    from featx.heads.linear_head import LinearHead
    from featx.networks.external.code import trust_code
    from featx.options.comparing import CompareConfig, RdmConfig, SimilarityConfig
    from featx.options.exchange import AverageConfig, ExportConfig
    from featx.options.extraction import (
        CheckConfig,
        EvaluateConfig,
        ExtractConfig,
        LayersConfig,
        PredictConfig,
        VerifyConfig,
    )
    from featx.options.heads import FitConfig, FuseConfig, ProbeConfig
    from featx.options.serving import ServeConfig
    from featx.options.show import (
        ClassImageConfig,
        CorrespondenceConfig,
        EvolutionConfig,
        FiltersConfig,
        InvarianceConfig,
        MapConfig,
        MapsConfig,
        NeighborsConfig,
        OcclusionConfig,
        PairsConfig,
        ReportConfig,
        SaliencyConfig,
        TopConfig,
    )
    from featx.options.training import FinetuneConfig
    from featx.service.client import Client
    from featx.store.open import open_features
    from featx.store.reader import Features

_HOME = {
    "Client": "featx.service.client",
    "CheckConfig": "featx.options.extraction",
    "CheckReport": "featx.commands.check",
    "OnnxReport": "featx.commands.exchange.onnx_export",
    "export_onnx": "featx.commands.exchange.onnx_export",
    "ImportReport": "featx.commands.exchange.import_parquet",
    "import_parquet": "featx.commands.exchange.import_parquet",
    "RayReport": "featx.commands.exchange.ray_extract",
    "extract_with_ray": "featx.commands.exchange.ray_extract",
    "ConcatReport": "featx.commands.exchange.concat",
    "concat_features": "featx.commands.exchange.concat",
    "ExportReport": "featx.commands.exchange.export",
    "export_features": "featx.commands.exchange.export",
    "ExportConfig": "featx.options.exchange",
    "EvaluateConfig": "featx.options.extraction",
    "EvaluateReport": "featx.artifacts.evaluation",
    "ExtractConfig": "featx.options.extraction",
    "ExtractReport": "featx.commands.extract",
    "Extractor": "featx.extraction.in_memory.extractor",
    "Features": "featx.store.reader",
    "FeatxError": "featx.errors",
    "FiltersConfig": "featx.options.show",
    "FinetuneConfig": "featx.options.training",
    "FinetuneReport": "featx.artifacts.finetuned_run",
    "FitConfig": "featx.options.heads",
    "FitReport": "featx.artifacts.head_file",
    "ImageError": "featx.errors",
    "InspectReport": "featx.commands.inspect",
    "LayersConfig": "featx.options.extraction",
    "LayersReport": "featx.commands.layers",
    "LinearHead": "featx.heads.linear_head",
    "LinearSVM": "featx.heads.estimators",
    "MapsConfig": "featx.options.show",
    "OcclusionConfig": "featx.options.show",
    "SaliencyConfig": "featx.options.show",
    "show_filters": "featx.commands.show.filters",
    "show_maps": "featx.commands.show.maps",
    "show_occlusion": "featx.commands.show.occlusion",
    "show_saliency": "featx.commands.show.saliency",
    "MergeReport": "featx.commands.merge",
    "PredictConfig": "featx.options.extraction",
    "PredictReport": "featx.commands.predict",
    "Prediction": "featx.extraction.in_memory.predictor",
    "Predictor": "featx.extraction.in_memory.predictor",
    "ProbeConfig": "featx.options.heads",
    "ProbeReport": "featx.artifacts.probe_folder",
    "ServeConfig": "featx.options.serving",
    "Softmax": "featx.heads.estimators",
    "MapConfig": "featx.options.show",
    "show_map": "featx.commands.show.map",
    "NeighborsConfig": "featx.options.show",
    "show_neighbors": "featx.commands.show.neighbors",
    "InvarianceConfig": "featx.options.show",
    "show_invariance": "featx.commands.show.invariance",
    "ClassImageConfig": "featx.options.show",
    "show_class_image": "featx.commands.show.class_image",
    "CorrespondenceConfig": "featx.options.show",
    "show_correspondence": "featx.commands.show.correspondence",
    "EvolutionConfig": "featx.options.show",
    "show_evolution": "featx.commands.show.evolution",
    "ReportConfig": "featx.options.show",
    "PageReport": "featx.commands.show.report",
    "write_report": "featx.commands.show.report",
    "PairsConfig": "featx.options.show",
    "compare_pairs": "featx.commands.compare.pairs",
    "trust_code": "featx.networks.external.code",
    "TopConfig": "featx.options.show",
    "show_top": "featx.commands.show.top",
    "VerifyConfig": "featx.options.extraction",
    "VerifyReport": "featx.commands.verify",
    "check_source": "featx.commands.check",
    "evaluate_head": "featx.commands.evaluate",
    "extract_features": "featx.commands.extract",
    "finetune_network": "featx.commands.finetune",
    "fit_softmax": "featx.commands.fit",
    "fit_svm": "featx.commands.fit",
    "inspect_file": "featx.commands.inspect",
    "list_layers": "featx.commands.layers",
    "merge_shards": "featx.commands.merge",
    "open_features": "featx.store.open",
    "predict_images": "featx.commands.predict",
    "predict_with_heads": "featx.commands.predict",
    "average_features": "featx.commands.exchange.average",
    "fuse_heads": "featx.commands.compare.fuse",
    "representational_dissimilarity": "featx.commands.compare.rdm",
    "compare_representations": "featx.commands.compare.similarity",
    "RdmConfig": "featx.options.comparing",
    "CompareConfig": "featx.options.comparing",
    "compare_heads": "featx.commands.compare.heads",
    "SimilarityConfig": "featx.options.comparing",
    "AverageConfig": "featx.options.exchange",
    "FuseConfig": "featx.options.heads",
    "probe_layers": "featx.commands.probe",
    "verify_file": "featx.commands.verify",
}
__all__ = [
    "AverageConfig",
    "CheckConfig",
    "CheckReport",
    "ClassImageConfig",
    "Client",
    "CompareConfig",
    "ConcatReport",
    "CorrespondenceConfig",
    "EvaluateConfig",
    "EvaluateReport",
    "EvolutionConfig",
    "ExportConfig",
    "ExportReport",
    "ExtractConfig",
    "ExtractReport",
    "Extractor",
    "Features",
    "FeatxError",
    "FiltersConfig",
    "FinetuneConfig",
    "FinetuneReport",
    "FitConfig",
    "FitReport",
    "FuseConfig",
    "ImageError",
    "ImportReport",
    "InspectReport",
    "InvarianceConfig",
    "LayersConfig",
    "LayersReport",
    "LinearHead",
    "LinearSVM",
    "MapConfig",
    "MapsConfig",
    "MergeReport",
    "NeighborsConfig",
    "OcclusionConfig",
    "OnnxReport",
    "PageReport",
    "PairsConfig",
    "PredictConfig",
    "PredictReport",
    "Prediction",
    "Predictor",
    "ProbeConfig",
    "ProbeReport",
    "RayReport",
    "RdmConfig",
    "ReportConfig",
    "SaliencyConfig",
    "ServeConfig",
    "SimilarityConfig",
    "Softmax",
    "TopConfig",
    "VerifyConfig",
    "VerifyReport",
    "__version__",
    "average_features",
    "check_source",
    "compare_heads",
    "compare_pairs",
    "compare_representations",
    "concat_features",
    "evaluate_head",
    "export_features",
    "export_onnx",
    "extract_features",
    "extract_with_ray",
    "finetune_network",
    "fit_softmax",
    "fit_svm",
    "fuse_heads",
    "import_parquet",
    "inspect_file",
    "list_layers",
    "merge_shards",
    "open_features",
    "predict_images",
    "predict_with_heads",
    "probe_layers",
    "representational_dissimilarity",
    "show_class_image",
    "show_correspondence",
    "show_evolution",
    "show_filters",
    "show_invariance",
    "show_map",
    "show_maps",
    "show_neighbors",
    "show_occlusion",
    "show_saliency",
    "show_top",
    "trust_code",
    "verify_file",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
