"""featx: deep features you can trust, and linear heads on top of them.

    import featx

    featx.extract_features("photos", "photos.h5", featx.ExtractConfig(backbone="alexnet", layers="fc6,fc7"))
    featx.verify_file("photos.h5")
    X, y = featx.open_features("photos.h5").xy("fc7")

Everything here is loaded when it is first used: `import featx` imports neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if sys.platform == "win32":
    raise ImportError("featx runs on Linux and macOS; on Windows use it under WSL or as a container")

if TYPE_CHECKING:
    from featx.artifacts.evaluation import EvaluateReport
    from featx.artifacts.finetuned_run import FinetuneReport
    from featx.artifacts.head_file import FitReport
    from featx.artifacts.probe_folder import ProbeReport
    from featx.commands.check import CheckReport, check_source
    from featx.commands.compare.encode import encode_responses
    from featx.commands.compare.fuse import fuse_heads
    from featx.commands.compare.heads import compare_heads
    from featx.commands.compare.pairs import compare_pairs
    from featx.commands.compare.plot import plot_probes
    from featx.commands.compare.rdm import representational_dissimilarity
    from featx.commands.compare.similarity import compare_representations
    from featx.commands.data.augment import show_augmentation
    from featx.commands.data.clean import clean_list
    from featx.commands.data.lr_find import find_learning_rate
    from featx.commands.data.suspects import find_suspects
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
    from featx.heads.estimators_cv import LinearSVMCV, SoftmaxCV
    from featx.heads.linear_head import LinearHead
    from featx.networks.external.code import trust_code
    from featx.options.analysis import (
        CompareConfig,
        EncodeConfig,
        PlotConfig,
        RdmConfig,
        SimilarityConfig,
        SuspectsConfig,
    )
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
        AugmentConfig,
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
    from featx.options.training import FinetuneConfig, LrFindConfig
    from featx.service.client import Client
    from featx.store.open import open_features
    from featx.store.reader import Features

_MODULES = {  # module -> what of it is the library's
    "featx.artifacts.evaluation": "EvaluateReport",
    "featx.artifacts.finetuned_run": "FinetuneReport",
    "featx.artifacts.head_file": "FitReport",
    "featx.artifacts.probe_folder": "ProbeReport",
    "featx.commands.check": "CheckReport check_source",
    "featx.commands.compare.encode": "encode_responses",
    "featx.commands.compare.fuse": "fuse_heads",
    "featx.commands.compare.heads": "compare_heads",
    "featx.commands.compare.pairs": "compare_pairs",
    "featx.commands.compare.plot": "plot_probes",
    "featx.commands.compare.rdm": "representational_dissimilarity",
    "featx.commands.compare.similarity": "compare_representations",
    "featx.commands.data.augment": "show_augmentation",
    "featx.commands.data.clean": "clean_list",
    "featx.commands.data.lr_find": "find_learning_rate",
    "featx.commands.data.suspects": "find_suspects",
    "featx.commands.evaluate": "evaluate_head",
    "featx.commands.exchange.average": "average_features",
    "featx.commands.exchange.concat": "ConcatReport concat_features",
    "featx.commands.exchange.export": "ExportReport export_features",
    "featx.commands.exchange.import_parquet": "ImportReport import_parquet",
    "featx.commands.exchange.onnx_export": "OnnxReport export_onnx",
    "featx.commands.exchange.ray_extract": "RayReport extract_with_ray",
    "featx.commands.extract": "ExtractReport extract_features",
    "featx.commands.finetune": "finetune_network",
    "featx.commands.fit": "fit_softmax fit_svm",
    "featx.commands.inspect": "InspectReport inspect_file",
    "featx.commands.layers": "LayersReport list_layers",
    "featx.commands.merge": "MergeReport merge_shards",
    "featx.commands.predict": "PredictReport predict_images predict_with_heads",
    "featx.commands.probe": "probe_layers",
    "featx.commands.show.class_image": "show_class_image",
    "featx.commands.show.correspondence": "show_correspondence",
    "featx.commands.show.evolution": "show_evolution",
    "featx.commands.show.filters": "show_filters",
    "featx.commands.show.invariance": "show_invariance",
    "featx.commands.show.map": "show_map",
    "featx.commands.show.maps": "show_maps",
    "featx.commands.show.neighbors": "show_neighbors",
    "featx.commands.show.occlusion": "show_occlusion",
    "featx.commands.show.report": "PageReport write_report",
    "featx.commands.show.saliency": "show_saliency",
    "featx.commands.show.top": "show_top",
    "featx.commands.verify": "VerifyReport verify_file",
    "featx.errors": "FeatxError ImageError",
    "featx.extraction.in_memory.extractor": "Extractor",
    "featx.extraction.in_memory.predictor": "Prediction Predictor",
    "featx.heads.estimators": "LinearSVM Softmax",
    "featx.heads.estimators_cv": "LinearSVMCV SoftmaxCV",
    "featx.heads.linear_head": "LinearHead",
    "featx.networks.external.code": "trust_code",
    "featx.options.analysis": "CompareConfig EncodeConfig PlotConfig RdmConfig SimilarityConfig SuspectsConfig",
    "featx.options.exchange": "AverageConfig ExportConfig",
    "featx.options.extraction": "CheckConfig EvaluateConfig ExtractConfig LayersConfig PredictConfig VerifyConfig",
    "featx.options.heads": "FitConfig FuseConfig ProbeConfig",
    "featx.options.serving": "ServeConfig",
    "featx.options.show": "AugmentConfig ClassImageConfig CorrespondenceConfig EvolutionConfig FiltersConfig "
    "InvarianceConfig MapConfig MapsConfig NeighborsConfig OcclusionConfig PairsConfig ReportConfig SaliencyConfig "
    "TopConfig",
    "featx.options.training": "FinetuneConfig LrFindConfig",
    "featx.service.client": "Client",
    "featx.store.open": "open_features",
    "featx.store.reader": "Features",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = [
    "AugmentConfig",
    "AverageConfig",
    "CheckConfig",
    "CheckReport",
    "ClassImageConfig",
    "Client",
    "CompareConfig",
    "ConcatReport",
    "CorrespondenceConfig",
    "EncodeConfig",
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
    "LinearSVMCV",
    "LrFindConfig",
    "MapConfig",
    "MapsConfig",
    "MergeReport",
    "NeighborsConfig",
    "OcclusionConfig",
    "OnnxReport",
    "PageReport",
    "PairsConfig",
    "PlotConfig",
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
    "SoftmaxCV",
    "SuspectsConfig",
    "TopConfig",
    "VerifyConfig",
    "VerifyReport",
    "__version__",
    "average_features",
    "check_source",
    "clean_list",
    "compare_heads",
    "compare_pairs",
    "compare_representations",
    "concat_features",
    "encode_responses",
    "evaluate_head",
    "export_features",
    "export_onnx",
    "extract_features",
    "extract_with_ray",
    "find_learning_rate",
    "find_suspects",
    "finetune_network",
    "fit_softmax",
    "fit_svm",
    "fuse_heads",
    "import_parquet",
    "inspect_file",
    "list_layers",
    "merge_shards",
    "open_features",
    "plot_probes",
    "predict_images",
    "predict_with_heads",
    "probe_layers",
    "representational_dissimilarity",
    "show_augmentation",
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
