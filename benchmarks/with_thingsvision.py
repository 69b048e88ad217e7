"""Run by `extract.py --thingsvision PYTHON` in the environment where thingsvision is installed: prints seconds.

    PYTHON with_thingsvision.py PHOTOS FOLDER NET MODULE

From the construction of the network to the closed HDF5 file, imports left out; random weights.
"""

import sys
import time
import warnings


def main(photos: str, folder: str, net: str, module: str) -> None:
    warnings.filterwarnings("ignore")
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset
    from thingsvision.utils.storing import save_features

    started = time.perf_counter()
    extractor = get_extractor(model_name=net, source="torchvision", device="cpu", pretrained=False)
    dataset = ImageDataset(
        root=photos, out_path=folder, backend=extractor.get_backend(), transforms=extractor.get_transformations()
    )
    batches = DataLoader(dataset=dataset, batch_size=32, backend=extractor.get_backend())
    features = extractor.extract_features(batches=batches, module_name=module, flatten_acts=False)
    save_features(features, out_path=folder, file_format="hdf5")
    print(f"seconds {time.perf_counter() - started}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
