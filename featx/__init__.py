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
    from featx.check import CheckReport, check_source
    from featx.config import (
        CheckConfig,
        EvaluateConfig,
        ExtractConfig,
        FinetuneConfig,
        FitConfig,
        LayersConfig,
        PredictConfig,
        ProbeConfig,
        VerifyConfig,
    )
    from featx.errors import FeatxError
    from featx.evaluate import EvaluateReport, evaluate_head
    from featx.extract import ExtractReport, extract_features
    from featx.finetune import FinetuneReport, finetune_network
    from featx.fit import FitReport, fit_softmax, fit_svm
    from featx.heads.estimators import LinearSVM, Softmax
    from featx.heads.linear import LinearHead
    from featx.inspect import InspectReport, inspect_file
    from featx.layers import LayersReport, list_layers
    from featx.merge import MergeReport, merge_shards
    from featx.predict import PredictReport, predict_images
    from featx.probe import ProbeReport, probe_layers
    from featx.store.reader import Features, open_features
    from featx.verify import VerifyReport, verify_file

_HOME = {
    "CheckConfig": "featx.config",
    "CheckReport": "featx.check",
    "EvaluateConfig": "featx.config",
    "EvaluateReport": "featx.evaluate",
    "ExtractConfig": "featx.config",
    "ExtractReport": "featx.extract",
    "Features": "featx.store.reader",
    "FeatxError": "featx.errors",
    "FinetuneConfig": "featx.config",
    "FinetuneReport": "featx.finetune",
    "FitConfig": "featx.config",
    "FitReport": "featx.fit",
    "InspectReport": "featx.inspect",
    "LayersConfig": "featx.config",
    "LayersReport": "featx.layers",
    "LinearHead": "featx.heads.linear",
    "LinearSVM": "featx.heads.estimators",
    "MergeReport": "featx.merge",
    "PredictConfig": "featx.config",
    "PredictReport": "featx.predict",
    "ProbeConfig": "featx.config",
    "ProbeReport": "featx.probe",
    "Softmax": "featx.heads.estimators",
    "VerifyConfig": "featx.config",
    "VerifyReport": "featx.verify",
    "check_source": "featx.check",
    "evaluate_head": "featx.evaluate",
    "extract_features": "featx.extract",
    "finetune_network": "featx.finetune",
    "fit_softmax": "featx.fit",
    "fit_svm": "featx.fit",
    "inspect_file": "featx.inspect",
    "list_layers": "featx.layers",
    "merge_shards": "featx.merge",
    "open_features": "featx.store.reader",
    "predict_images": "featx.predict",
    "probe_layers": "featx.probe",
    "verify_file": "featx.verify",
}

__all__ = [  # defined by __getattr__
    "CheckConfig",
    "CheckReport",
    "EvaluateConfig",
    "EvaluateReport",
    "ExtractConfig",
    "ExtractReport",
    "Features",
    "FeatxError",
    "FinetuneConfig",
    "FinetuneReport",
    "FitConfig",
    "FitReport",
    "InspectReport",
    "LayersConfig",
    "LayersReport",
    "LinearHead",
    "LinearSVM",
    "MergeReport",
    "PredictConfig",
    "PredictReport",
    "ProbeConfig",
    "ProbeReport",
    "Softmax",
    "VerifyConfig",
    "VerifyReport",
    "__version__",
    "check_source",
    "evaluate_head",
    "extract_features",
    "finetune_network",
    "fit_softmax",
    "fit_svm",
    "inspect_file",
    "list_layers",
    "merge_shards",
    "open_features",
    "predict_images",
    "probe_layers",
    "verify_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
