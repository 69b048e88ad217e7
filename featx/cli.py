"""The command line: options in, one call, one summary out. It and `featx.options.click_options` know click.

Results go to standard output, plans, progress and warnings to standard error. Options come from flags, then
FEATX_* variables, then --config FILE.yaml, then the defaults in `featx.options`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featx import __version__
from featx.errors import DiskError, FeatxError, OutOfMemory, UsageError, VerificationFailed
from featx.options.analysis import (
    CompareConfig,
    EncodeConfig,
    PlotConfig,
    RdmConfig,
    SimilarityConfig,
    SuspectsConfig,
)
from featx.options.click_options import PATH, common, options_of, output_option, unknown_variables
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
from featx.runtime.memory import is_out_of_memory
from featx.runtime.progress import LOG_FORMATS, Log, StderrReporter, current_log, use_log
from featx.runtime.streams import open_missing_streams
from featx.runtime.text import printable

if TYPE_CHECKING:
    from featx.runtime.report import Report

INTERRUPTED = 130
COMPUTING = (
    "check",
    "evaluate",
    "extract",
    "finetune",
    "lr-find",
    "predict",
    "probe",
    "report",
    "serve",
    "show",
)  # they run networks


def show(report: Report, as_json: bool) -> None:
    """Print a report on standard output."""
    click.echo(json.dumps(report.to_json()) if as_json else str(report).encode("utf-8", "backslashreplace").decode())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="featx")
@click.option(
    "--trust", multiple=True, metavar="CODE", help="Let this code run where a file says that it made the network: "
    "net.py:build or package.module:build.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), default="text", envvar="FEATX_LOG_FORMAT", help="Of standard "
    "error: text; time, which puts the time before every line; json, one object a line.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, envvar="FEATX_QUIET", help="Say nothing but errors.")
@click.option(
    "-v", "--verbose", is_flag=True, envvar="FEATX_VERBOSE", help="Say each image that fails when it does, and where "
    "an error happened.",
)  # fmt: skip
@click.option(
    "--metrics-file", type=PATH, envvar="FEATX_METRICS_FILE", metavar="FILE",
    help="Keep here how far the command is, for Prometheus' textfile collector.",
)  # fmt: skip
@click.pass_context
def commands(
    ctx: click.Context, trust: tuple[str, ...], log_format: str, quiet: bool, verbose: bool, metrics_file: Path | None
) -> None:
    """Deep features you can trust, and linear heads on top of them.

    \b
    featx extract photos/ -b alexnet -l fc6,fc7 -o photos.h5
    featx verify photos.h5
    featx fit-svm photos.h5 -l fc7 -o head.safetensors
    featx predict head.safetensors more-photos/ -o predictions.csv
    """
    if quiet and verbose:
        raise UsageError("--quiet says nothing but errors, --verbose more than usual; leave one out")
    use_log(Log(log_format, quiet, verbose, metrics_file))
    StderrReporter().notes(unknown_variables(commands))
    for name in trust:
        from featx.networks.external.code import is_code, trust_code

        if not is_code(name):
            raise UsageError(f"--trust is {name!r}; it must be net.py:build or package.module:build")
        trust_code(name)
    if ctx.invoked_subcommand in COMPUTING:
        from featx.runtime.memory import keep_freed_memory

        keep_freed_memory()


@commands.command("layers")
@click.argument("net")
@options_of(LayersConfig)
@common
def layers_command(net: str, config: LayersConfig, as_json: bool) -> None:
    """List the layers of a network: names, shapes, sizes, receptive fields, cost.

    \b
    featx layers vgg16
    """
    from featx.commands.layers import list_layers

    show(list_layers(net, config), as_json)


@commands.group("weights", invoke_without_command=True)
@common
@click.pass_context
def weights_command(ctx: click.Context, as_json: bool) -> None:
    """List the weights that are shipped, cached and downloadable; `featx weights fetch` downloads.

    \b
    featx weights
    featx weights fetch alexnet vgg16
    """
    from featx.commands.weights import list_weights

    if ctx.invoked_subcommand is None:
        show(list_weights(), as_json)


@weights_command.command("fetch")
@click.argument("nets", nargs=-1)
@common
def weights_fetch_command(nets: tuple[str, ...], as_json: bool) -> None:
    """Download the weights of NETS, for use without a network connection.

    \b
    featx weights fetch alexnet vgg16
    """
    from featx.commands.weights import fetch_all

    show(fetch_all(nets, reporter=StderrReporter()), as_json)


@commands.command("extract")
@click.argument("source", type=PATH)
@output_option("The features file to make.", required=True)
@options_of(ExtractConfig)
@common
def extract_command(source: Path, output: Path, config: ExtractConfig, as_json: bool) -> None:
    """Extract layers for all images of SOURCE: a folder, a text list, a CSV or a zip.

    The same command again resumes an interrupted run, and does nothing if the file is finished.

    \b
    featx extract photos/ -b alexnet -l fc6,fc7 -o photos.h5
    """
    from featx.commands.extract import extract_features
    from featx.distributed.work_queue import join_group

    queue = join_group(config.shard)
    report = extract_features(source, output, config, queue=queue, reporter=StderrReporter())
    if queue is None or queue.is_first:
        show(report, as_json)


@commands.command("merge")
@click.argument("shards", type=PATH, nargs=-1, required=True)
@output_option("The features file to make.", required=True)
@common
def merge_command(shards: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Merge SHARDS, the files of `featx extract --shard I/N` or folders of them, into one features file.

    \b
    featx merge parts/ -o photos.h5
    """
    from featx.commands.merge import merge_shards

    show(merge_shards(shards, output, reporter=StderrReporter()), as_json)


@commands.command("concat")
@click.argument("files", type=PATH, nargs=-1, required=True)
@output_option("The features file to make.", required=True)
@common
def concat_command(files: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Join FILES, features with the same settings of different images, into one features file.

    \b
    featx concat june.h5 july.h5 -o summer.h5
    """
    from featx.commands.exchange.concat import concat_features

    show(concat_features(files, output, reporter=StderrReporter()), as_json)


@commands.command("average")
@click.argument("features", type=PATH)
@output_option("The features file to make.", required=True)
@options_of(AverageConfig)
@common
def average_command(features: Path, output: Path, config: AverageConfig, as_json: bool) -> None:
    """Average the rows of FEATURES that belong together: the frames of a clip, or the photos of one thing.

    \b
    featx average frames.h5 -o clips.h5
    featx average photos.h5 --by 'bird-[0-9]+' -o birds.h5
    """
    from featx.commands.exchange.average import average_features

    show(average_features(features, output, config, reporter=StderrReporter()), as_json)


@commands.command("export")
@click.argument("source", type=PATH)
@output_option("The file to make: .npz, .npy, .mat, .csv, .parquet or .tsv; of a head or run .onnx.", required=True)
@options_of(ExportConfig)
@common
def export_command(source: Path, output: Path, config: ExportConfig, as_json: bool) -> None:
    """Write SOURCE, a features file, for other programs; or a head or fine-tuned network as an ONNX model.

    \b
    featx export photos.h5 -o photos.npz
    featx export photos.h5 -l fc7 -o photos.tsv
    featx export head.safetensors -o model.onnx
    """
    if output.suffix.lower() == ".onnx":
        from featx.commands.exchange.onnx_export import export_onnx

        made = export_onnx(
            source, output, weights_file=config.weights_file, overwrite=config.overwrite, reporter=StderrReporter()
        )
        show(made, as_json)
        return
    from featx.commands.exchange.export import export_features

    show(export_features(source, output, config, reporter=StderrReporter()), as_json)


@commands.command("import")
@click.argument("folder", type=PATH)
@output_option("The features file to make.", required=True)
@common
def import_command(folder: Path, output: Path, as_json: bool) -> None:
    """Make a features file of FOLDER, the Parquet files that featx.extract_with_ray has made.

    \b
    featx import parquet/ -o photos.h5
    """
    from featx.commands.exchange.import_parquet import import_parquet

    show(import_parquet(folder, output, reporter=StderrReporter()), as_json)


@commands.command("check")
@click.argument("source", type=PATH)
@options_of(CheckConfig)
@common
def check_command(source: Path, config: CheckConfig, as_json: bool) -> None:
    """Check the images of SOURCE before a run: bad files, duplicates, time and disk needed.

    The exit status is 3 if more images are bad than --max-bad allows an extraction.

    \b
    featx check photos/
    """
    from featx.commands.check import check_source

    report = check_source(source, config, reporter=StderrReporter())
    show(report, as_json)
    report.refuse_too_many_bad(0.0 if config.strict else config.max_bad)


@commands.command("inspect")
@click.argument("file", type=PATH)
@common
def inspect_command(file: Path, as_json: bool) -> None:
    """Show what is inside a features FILE: provenance, counts, failures, suspicious columns.

    \b
    featx inspect photos.h5
    """
    from featx.commands.inspect import inspect_file

    show(inspect_file(file), as_json)


@commands.command("verify")
@click.argument("file", type=PATH)
@options_of(VerifyConfig)
@common
def verify_command(file: Path, config: VerifyConfig, as_json: bool) -> None:
    """Verify a features FILE: its checksums, and rows recomputed one by one with PyTorch and torchvision alone.

    A head or a fine-tuned network is compared with its hash, and measured again where --source names its data.

    \b
    featx verify photos.h5 --rows 64
    featx verify head.safetensors --source photos.h5
    """
    from featx.commands.verify import verify_file

    show(verify_file(file, config, reporter=StderrReporter()), as_json)


@commands.command("fit-svm")
@click.argument("features", type=PATH, nargs=-1, required=True)
@output_option("The head to save; without it, only the report.")
@options_of(FitConfig)
@common
def fit_svm_command(features: tuple[Path, ...], output: Path | None, config: FitConfig, as_json: bool) -> None:
    """Fit a linear SVM on the rows of FEATURES, one file or several.

    \b
    featx fit-svm photos.h5 -l fc7 --c auto -o head.safetensors
    """
    from featx.commands.fit import fit_svm

    show(fit_svm(features, output, config, reporter=StderrReporter()), as_json)


@commands.command("fit-softmax")
@click.argument("features", type=PATH, nargs=-1, required=True)
@output_option("The head to save; without it, only the report.")
@options_of(FitConfig)
@common
def fit_softmax_command(features: tuple[Path, ...], output: Path | None, config: FitConfig, as_json: bool) -> None:
    """Fit a softmax (multinomial logistic regression) head on the rows of FEATURES, one file or several.

    \b
    featx fit-softmax photos.h5 -l fc7 --per-class 30 -o head.safetensors
    """
    from featx.commands.fit import fit_softmax

    show(fit_softmax(features, output, config, reporter=StderrReporter()), as_json)


@commands.command("finetune")
@click.argument("source", type=PATH)
@output_option("Folder of the run.", metavar="FOLDER", required=True)
@options_of(FinetuneConfig)
@common
def finetune_command(source: Path, output: Path, config: FinetuneConfig, as_json: bool) -> None:
    """Fine-tune a network on the labelled images of SOURCE, with a learning rate for every layer.

    The same command again resumes an interrupted run. With several processes or GPUs:
    torchrun --nproc-per-node N -m featx finetune ...

    \b
    featx finetune photos/ -b alexnet -o run/ \\
        --lr "conv1-conv3=0, conv4-conv5=1e-4, fc6-fc7=1e-3, fc8=1e-2"
    featx finetune photos/ -b vgg16 --lr fc -o run/
    """
    from featx.commands.finetune import finetune_network
    from featx.runtime.environment import read_environment

    report = finetune_network(source, output, config, reporter=StderrReporter())
    if read_environment().is_first:  # the first of torchrun's processes speaks for all
        show(report, as_json)


@commands.command("lr-find")
@click.argument("source", type=PATH)
@output_option("Folder for picture and table.", metavar="FOLDER", required=True)
@options_of(LrFindConfig)
@common
def lr_find_command(source: Path, output: Path, config: LrFindConfig, as_json: bool) -> None:
    """Find learning rates for a fine-tuning: train for some steps while all rates grow, and look at the loss.

    Takes the options of featx finetune; nothing of the training is kept.

    \b
    featx lr-find photos/ -b alexnet --lr "conv1-conv5=0, fc6-fc7=1e-3, fc8=1e-2" -o lr/
    """
    from featx.commands.data.lr_find import find_learning_rate

    show(find_learning_rate(source, output, config, reporter=StderrReporter()), as_json)


@commands.command("probe")
@click.argument("source", type=PATH, nargs=-1, required=True)
@output_option("Folder for table and picture.", metavar="FOLDER")
@options_of(ProbeConfig)
@common
def probe_command(source: tuple[Path, ...], output: Path | None, config: ProbeConfig, as_json: bool) -> None:
    """Compare the layers of features files, or of the images of SOURCE: which transfers best?

    \b
    featx probe photos.h5 --per-class 30 --repeats 10 -o probe/
    """
    from featx.commands.probe import probe_layers

    show(probe_layers(source, output, config, reporter=StderrReporter()), as_json)


@commands.command("predict")
@click.argument("head", type=PATH, nargs=-1, required=True)
@click.argument("source", type=PATH)
@output_option("The CSV file to write; without one the best classes are shown. Of several heads a folder.")
@options_of(PredictConfig)
@common
def predict_command(
    head: tuple[Path, ...], source: Path, output: Path | None, config: PredictConfig, as_json: bool
) -> None:
    """Predict the class of every image of SOURCE (a folder, list, zip or image), or of every row of a features file.

    Several heads with the features of one network see each image once; each has its table in the folder of -o.

    \b
    featx predict head.safetensors more-photos/ -o predictions.csv
    featx predict head.safetensors photo.jpg
    featx predict species.safetensors sex.safetensors birds/ -o predictions/
    """
    from featx.commands.predict import predict_images, predict_with_heads

    if len(head) > 1:
        show(predict_with_heads(head, source, output, config, reporter=StderrReporter()), as_json)
    else:
        show(predict_images(head[0], source, output, config, reporter=StderrReporter()), as_json)


@commands.command("evaluate")
@click.argument("head", type=PATH)
@click.argument("features", type=PATH, nargs=-1, required=True)
@output_option("Save the report here, as JSON; NAME.html is a page, with the JSON beside it.")
@options_of(EvaluateConfig)
@common
def evaluate_command(
    head: Path, features: tuple[Path, ...], output: Path | None, config: EvaluateConfig, as_json: bool
) -> None:
    """Evaluate a HEAD, or a fine-tuned network (its folder), on labelled images, or a head on the rows of FEATURES.

    \b
    featx evaluate head.safetensors test-photos.h5
    featx evaluate run/ test-photos/ -o report.html
    """
    from featx.commands.evaluate import evaluate_head

    show(evaluate_head(head, features, config, output=output, reporter=StderrReporter()), as_json)


@commands.command("compare")
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.argument("features", type=PATH, nargs=-1, required=True)
@options_of(CompareConfig)
@common
def compare_command(
    first: Path, second: Path, features: tuple[Path, ...], config: CompareConfig, as_json: bool
) -> None:
    """Compare two heads on labelled FEATURES: which images each gets right, and whether that is chance (McNemar).

    \b
    featx compare fc6.safetensors fc7.safetensors test-photos.h5
    """
    from featx.commands.compare.heads import compare_heads

    show(compare_heads(first, second, features, config), as_json)


@commands.command("encode")
@click.argument("features", type=PATH)
@click.argument("responses", type=PATH)
@output_option("Folder for table, numbers and picture.", metavar="FOLDER", required=True)
@options_of(EncodeConfig)
@common
def encode_command(features: Path, responses: Path, output: Path, config: EncodeConfig, as_json: bool) -> None:
    """Predict RESPONSES to the images (.npy, .h5, .csv) from each layer of FEATURES by ridge regression.

    \b
    featx encode stimuli.h5 voxels.npy -l conv1-fc7 -o encoding/
    """
    from featx.commands.compare.encode import encode_responses

    show(encode_responses(features, responses, output, config, reporter=StderrReporter()), as_json)


@commands.command("plot")
@click.argument("probes", type=PATH, nargs=-1, required=True)
@output_option("The picture: NAME.png, .svg or .pdf.", required=True)
@options_of(PlotConfig)
@common
def plot_command(probes: tuple[Path, ...], output: Path, config: PlotConfig, as_json: bool) -> None:
    """Draw several PROBES, folders of featx probe, in one picture, beside published numbers.

    \b
    featx plot probe-alexnet/ probe-vgg16/ --reference zeiler2014 -o probes.svg
    """
    from featx.commands.compare.plot import plot_probes

    show(plot_probes(probes, output, config), as_json)


@commands.command("suspects")
@click.argument("features", type=PATH)
@output_option("Folder for table and page.", metavar="FOLDER", required=True)
@options_of(SuspectsConfig)
@common
def suspects_command(features: Path, output: Path, config: SuspectsConfig, as_json: bool) -> None:
    """Find wrong labels, near-duplicates, outliers and poor photographs among the images of FEATURES.

    \b
    featx suspects photos.h5 -l fc7 -o suspects/
    """
    from featx.commands.data.suspects import find_suspects

    show(find_suspects(features, output, config, reporter=StderrReporter()), as_json)


@commands.command("clean")
@click.argument("features", type=PATH)
@click.argument("suspects", type=PATH)
@output_option("The list to write, a CSV file.", required=True)
@common
def clean_command(features: Path, suspects: Path, output: Path, as_json: bool) -> None:
    """List the images of FEATURES without those ticked in SUSPECTS, the table of featx suspects.

    \b
    featx clean photos.h5 suspects/suspects.csv -o clean.csv
    """
    from featx.commands.data.clean import clean_list

    show(clean_list(features, suspects, output), as_json)


@commands.command("fuse")
@click.argument("heads", nargs=-1, required=True, metavar="HEAD=FEATURES...")
@output_option("Save the decisions here, as CSV.")
@options_of(FuseConfig)
@common
def fuse_command(heads: tuple[str, ...], output: Path | None, config: FuseConfig, as_json: bool) -> None:
    """Decide with several heads on features of the same images: the mean of their scores, and an SVM on them.

    \b
    featx fuse frames.safetensors=frames.h5 flow.safetensors=flow.h5
    """
    from featx.commands.compare.fuse import fuse_heads

    pairs = [(one.partition("=")[0], one.partition("=")[2]) for one in heads]
    if not all(head and features for head, features in pairs):
        raise UsageError("fuse takes HEAD=FEATURES HEAD=FEATURES")
    show(fuse_heads(pairs, output, config, reporter=StderrReporter()), as_json)


@commands.group("show")
def show_group() -> None:
    """Show what a network sees: pictures, and the numbers behind them.

    \b
    featx show saliency photo.jpg -b vgg16 -o saliency/
    featx show occlusion photo.jpg -b vgg16 -o occlusion/
    featx show maps photo.jpg -b alexnet -l conv1,conv5 -o maps/
    featx show filters alexnet -o filters/
    featx show top photos/ -b alexnet -l conv5 -o top/
    featx show map photos.h5 -l fc7 -o map/
    featx show neighbors photos.h5 --query photo.jpg -l conv3,fc7 -o neighbors/
    featx show invariance photo.jpg -b alexnet -l conv1,fc7 -o invariance/
    featx show class-image alexnet --target goose,lemon -o classes/
    featx show correspondence parts.csv -b alexnet -l conv5,fc7 -o correspondence/
    featx show evolution run/ -l conv5 -o evolution/
    featx show augment photos/ --augment flip,crop -o augment/
    """


@show_group.command("augment")
@click.argument("source", type=PATH)
@output_option("Folder for the picture.", metavar="FOLDER", required=True)
@options_of(AugmentConfig)
@common
def show_augment_command(source: Path, output: Path, config: AugmentConfig, as_json: bool) -> None:
    """Show what an augmentation of featx finetune makes of images.

    \b
    featx show augment photos/ --augment flip,crop,jitter:0.3 -o augment/
    """
    from featx.commands.data.augment import show_augmentation

    show(show_augmentation(source, output, config, reporter=StderrReporter()), as_json)


@show_group.command("saliency")
@click.argument("images", type=PATH, nargs=-1, required=True)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(SaliencyConfig)
@common
def show_saliency_command(images: tuple[Path, ...], output: Path, config: SaliencyConfig, as_json: bool) -> None:
    """Show which pixels of IMAGES decide for a class.

    \b
    featx show saliency photo.jpg -b vgg16 --method gradient,gradcam -o saliency/
    """
    from featx.commands.show.saliency import show_saliency

    show(show_saliency(images, output, config, reporter=StderrReporter()), as_json)


@show_group.command("occlusion")
@click.argument("images", type=PATH, nargs=-1, required=True)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(OcclusionConfig)
@common
def show_occlusion_command(images: tuple[Path, ...], output: Path, config: OcclusionConfig, as_json: bool) -> None:
    """Show what a network makes of IMAGES while a grey square moves over them.

    \b
    featx show occlusion photo.jpg -b vgg16 -o occlusion/
    """
    from featx.commands.show.occlusion import show_occlusion

    show(show_occlusion(images, output, config, reporter=StderrReporter()), as_json)


@show_group.command("maps")
@click.argument("images", type=PATH, nargs=-1, required=True)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(MapsConfig)
@common
def show_maps_command(images: tuple[Path, ...], output: Path, config: MapsConfig, as_json: bool) -> None:
    """Show the activation maps of IMAGES, strongest first.

    \b
    featx show maps photo.jpg -b alexnet -l conv1,conv5 -o maps/
    """
    from featx.commands.show.maps import show_maps

    show(show_maps(images, output, config, reporter=StderrReporter()), as_json)


@show_group.command("filters")
@click.argument("net")
@output_option("Folder for the picture.", metavar="FOLDER", required=True)
@options_of(FiltersConfig)
@common
def show_filters_command(net: str, output: Path, config: FiltersConfig, as_json: bool) -> None:
    """Show the filters of a convolution of NET, the first by default.

    \b
    featx show filters alexnet -o filters/
    """
    from featx.commands.show.filters import show_filters

    show(show_filters(net, output, config, reporter=StderrReporter()), as_json)


@show_group.command("top")
@click.argument("source", type=PATH)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(TopConfig)
@common
def show_top_command(source: Path, output: Path, config: TopConfig, as_json: bool) -> None:
    """Show the images of SOURCE, images or a features file, that excite units of a layer most.

    Killed and started again, the same command goes on where it was.

    \b
    featx show top photos/ -b vgg16 -l conv4_3 --units 0,7,12 -o top/
    """
    from featx.commands.show.top import show_top

    show(show_top(source, output, config, reporter=StderrReporter()), as_json)


@show_group.command("map")
@click.argument("features", type=PATH)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(MapConfig)
@common
def show_map_command(features: Path, output: Path, config: MapConfig, as_json: bool) -> None:
    """Show a map of the images of FEATURES: alike ones side by side, as points, as a grid, and as a page.

    \b
    featx show map photos.h5 -l fc7 -o map/
    """
    from featx.commands.show.map import show_map

    show(show_map(features, output, config, reporter=StderrReporter()), as_json)


@show_group.command("neighbors")
@click.argument("features", type=PATH)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(NeighborsConfig)
@common
def show_neighbors_command(features: Path, output: Path, config: NeighborsConfig, as_json: bool) -> None:
    """Show which images of FEATURES lie nearest to some, by layer, and how often they are of the same class.

    \b
    featx show neighbors photos.h5 --query photo.jpg -l conv3,fc7 -o neighbors/
    """
    from featx.commands.show.neighbors import show_neighbors

    show(show_neighbors(features, output, config, reporter=StderrReporter()), as_json)


@show_group.command("invariance")
@click.argument("images", type=PATH, nargs=-1, required=True)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(InvarianceConfig)
@common
def show_invariance_command(images: tuple[Path, ...], output: Path, config: InvarianceConfig, as_json: bool) -> None:
    """Show how features and probabilities change when IMAGES are moved, enlarged and turned.

    \b
    featx show invariance photo.jpg -b alexnet -l conv1,fc7 -o invariance/
    """
    from featx.commands.show.invariance import show_invariance

    show(show_invariance(images, output, config, reporter=StderrReporter()), as_json)


@show_group.command("class-image")
@click.argument("net")
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(ClassImageConfig)
@common
def show_class_image_command(net: str, output: Path, config: ClassImageConfig, as_json: bool) -> None:
    """Show what NET takes for the essence of classes: images with the highest scores.

    \b
    featx show class-image alexnet --target goose,lemon -o classes/
    """
    from featx.commands.show.class_image import show_class_image

    show(show_class_image(net, output, config, reporter=StderrReporter()), as_json)


@show_group.command("correspondence")
@click.argument("parts", type=PATH)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(CorrespondenceConfig)
@common
def show_correspondence_command(parts: Path, output: Path, config: CorrespondenceConfig, as_json: bool) -> None:
    """Show whether hiding the same part of different images changes features alike.

    PARTS is a CSV file with the columns path, part, left, top, width, height.

    \b
    featx show correspondence parts.csv -b alexnet -l conv5,fc7 -o correspondence/
    """
    from featx.commands.show.correspondence import show_correspondence

    show(show_correspondence(parts, output, config, reporter=StderrReporter()), as_json)


@show_group.command("evolution")
@click.argument("run", type=PATH)
@output_option("Folder for the pictures.", metavar="FOLDER", required=True)
@options_of(EvolutionConfig)
@common
def show_evolution_command(run: Path, output: Path, config: EvolutionConfig, as_json: bool) -> None:
    """Show how units of RUN came to be what they are: their strongest activation at its snapshots.

    RUN is the folder of a training with featx finetune --snapshots.

    \b
    featx show evolution run/ -l conv5 -o evolution/
    """
    from featx.commands.show.evolution import show_evolution

    show(show_evolution(run, output, config, reporter=StderrReporter()), as_json)


@commands.command("report")
@click.argument("inputs", type=PATH, nargs=-1, required=True)
@output_option("The page to write.", metavar="FILE.html", required=True)
@options_of(ReportConfig)
@common
def report_command(inputs: tuple[Path, ...], output: Path, config: ReportConfig, as_json: bool) -> None:
    """Write one HTML page about INPUTS: features files, folders of trainings, folders of probes.

    \b
    featx report photos.h5 -o report.html
    """
    from featx.commands.show.report import write_report

    show(write_report(inputs, output, config, reporter=StderrReporter()), as_json)


@commands.command("pairs")
@click.argument("features", type=PATH)
@click.argument("pairs", type=PATH)
@output_option("Folder for table and picture.", metavar="FOLDER", required=True)
@options_of(PairsConfig)
@common
def pairs_command(features: Path, pairs: Path, output: Path, config: PairsConfig, as_json: bool) -> None:
    """Measure how well FEATURES tell PAIRS of the same from pairs of different, as faces of one person.

    PAIRS is a CSV file with the columns path, path2, same, or LFW's pairs.txt.

    \b
    featx pairs faces.h5 pairs.txt -l fc7 -o pairs/
    """
    from featx.commands.compare.pairs import compare_pairs

    show(compare_pairs(features, pairs, output, config, reporter=StderrReporter()), as_json)


@commands.command("rdm")
@click.argument("features", type=PATH)
@output_option("Folder for matrices and pictures.", metavar="FOLDER", required=True)
@options_of(RdmConfig)
@common
def rdm_command(features: Path, output: Path, config: RdmConfig, as_json: bool) -> None:
    """Compute how different the layers of FEATURES find every two images (representational dissimilarity).

    \b
    featx rdm stimuli.h5 -l conv5,fc7 -o rdm/
    """
    from featx.commands.compare.rdm import representational_dissimilarity

    show(representational_dissimilarity(features, output, config, reporter=StderrReporter()), as_json)


@commands.command("similarity")
@click.argument("features", type=PATH)
@click.argument("others", type=PATH)
@output_option("Folder for table and picture.", metavar="FOLDER", required=True)
@options_of(SimilarityConfig)
@common
def similarity_command(features: Path, others: Path, output: Path, config: SimilarityConfig, as_json: bool) -> None:
    """Compare the layers of FEATURES with those of OTHERS, of the same images: CKA, RSA or Procrustes.

    \b
    featx similarity alexnet.h5 vgg16.h5 --metric cka -o similarity/
    """
    from featx.commands.compare.similarity import compare_representations

    show(compare_representations(features, others, output, config, reporter=StderrReporter()), as_json)


@commands.command("serve")
@options_of(ServeConfig)
@common
def serve_command(config: ServeConfig, as_json: bool) -> None:
    """Serve features, classes and nearest images over HTTP, until SIGTERM or SIGINT.

    \b
    featx serve -b alexnet -l conv5,fc7 --head birds=head.safetensors
    curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" "localhost:8000/v1/features?layers=fc7"
    """
    try:
        from featx.service.server import serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"featx serve needs {error.name}, which is not installed: pip install 'featx[serve]'"
        ) from error
    serve(config, ready=lambda report: show(report, as_json))


def main(arguments: list[str] | None = None) -> None:
    """Run a command; every error becomes one line on standard error and an exit status.

    With FEATX_TRACEBACK=1 an unexpected error shows where it happened.
    """
    # Threads that wait for each other sleep instead of spinning: alone a command takes as long, and beside another on
    # the same cores it does not burn the other's time. Read when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Loading PyTorch makes a million objects that stay: by default the collector looks through them again and again.
    gc.set_threshold(50_000, 20, 50)
    open_missing_streams()
    forget_address_of_kubernetes()
    if os.getpid() == 1:  # the first process of a container: the system drops signals it has said nothing about
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        found = commands.main(arguments, prog_name="featx", standalone_mode=False)
        sys.stdout.flush()
        status = found if isinstance(found, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" Try: {context.command_path} --help" if context else ""
        status = complain(f"{error.format_message().rstrip('.')}{'.' if hint else ''}{hint}", status=error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        # Not sys.exit: threads may still be computing, and the interpreter must not be taken down under them.
        complain("interrupted", status=INTERRUPTED)
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    except VerificationFailed as error:
        status = complain(*str(error).split("\n"), status=error.exit_status)
    except FeatxError as error:
        if current_log().verbose:
            traceback.print_exc()
        status = complain(str(error), status=error.exit_status)
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            status = complain(
                "there is not enough memory. Use fewer --workers or a smaller --batch-size; for heads and training a "
                "smaller --memory",
                status=OutOfMemory.exit_status,
            )
        elif isinstance(error, OSError):
            with contextlib.suppress(OSError):
                sys.stdout.close()  # else the interpreter tries to flush it once more
            status = complain(str(error), status=DiskError.exit_status)
        else:
            status = unexpected(error)
    except Exception as error:
        status = unexpected(error)
    sys.exit(status)


def forget_address_of_kubernetes() -> None:
    """Let FEATX_PORT be unset where it is the address of a Service called featx, which Kubernetes tells every pod."""
    if "://" in os.environ.get("FEATX_PORT", ""):
        del os.environ["FEATX_PORT"]


def unexpected(error: Exception) -> int:
    """Say that something went wrong that should not be able to; the exit status."""
    if os.environ.get("FEATX_TRACEBACK") or current_log().verbose:
        raise error
    reason = " ".join(str(error).split())
    return complain(f"unexpected {type(error).__name__}: {reason} (FEATX_TRACEBACK=1 shows where)", status=1)


def complain(*lines: str, status: int) -> int:
    """Say what is wrong on standard error; the exit status."""
    message = "\n".join(map(printable, lines))
    log = current_log()
    said = f"featx: {message}" if log.format == "text" else log.entry("error", message, exit_status=status)
    click.echo(said, err=True)
    if "--json" in sys.argv[1:]:
        with contextlib.suppress(OSError):
            click.echo(json.dumps({"error": message, "exit_status": status}))
    return status
