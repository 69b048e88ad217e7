"""The templates are valid, their arguments are options, and the image's health check sees what it should."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from conftest import write_photo
from serving import serving

from featx.cli import commands

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "pipelines" / "cluster"


def options_in(words: list[str]) -> dict:
    """What the command line makes of a template's arguments, without running them."""
    assert words[0] == "serve"
    return commands.commands["serve"].make_context("serve", list(words[1:])).params


def test_the_kubernetes_template_obeys_the_published_schemas():
    found = list(yaml.safe_load_all((CLUSTER / "k8s-serve.yaml").read_text()))
    assert [one["kind"] for one in found] == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    for one in found:
        kubernetes_validate.validate(one, "1.33", strict=True)
    pod = found[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    options = options_in(container["args"])
    assert options["layers"] == "conv5,fc7"
    assert options["port"] == container["ports"][0]["containerPort"]
    assert (
        pod["terminationGracePeriodSeconds"]
        > options["grace"] + container["lifecycle"]["preStop"]["sleep"]["seconds"]
    )
    metric = found[2]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f'"{metric}"' in (ROOT / "featx" / "service" / "metrics.py").read_text()


def test_the_compose_file_names_what_there_is():
    found = yaml.safe_load((CLUSTER / "compose-serve.yaml").read_text())
    assert options_in(found["services"]["featx"]["command"])["layers"] == "conv5,fc7"
    scraped = yaml.safe_load(found["configs"]["prometheus"]["content"])["scrape_configs"][0]
    assert scraped["static_configs"] == [{"targets": ["featx:8000"]}]
    assert scraped.get("metrics_path", "/metrics") == "/metrics"


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_the_service_has():
    from featx.service.metrics import Metrics

    found = yaml.safe_load((CLUSTER / "compose-serve.yaml").read_text())
    assert (CLUSTER / found["configs"]["dashboard"]["file"]).is_file()
    source = yaml.safe_load(found["configs"]["datasource"]["content"])["datasources"][0]
    provider = yaml.safe_load(found["configs"]["dashboards"]["content"])["providers"][0]["options"]["path"]
    targets = {one["source"]: one["target"] for one in found["services"]["grafana"]["configs"]}
    assert targets["dashboard"].startswith(provider)
    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    metrics = Metrics()
    metrics.watch("alexnet", lambda: 0.0)
    metrics.requests.labels("/v1/features", "200")
    metrics.images.labels("done")
    metrics.rejected.labels("queue")
    metrics.seconds.labels("total")
    known = set(re.findall(r"^(featx_\w+)", metrics.text("")[0].decode(), re.MULTILINE))
    rules = yaml.safe_load((CLUSTER / found["configs"]["alerts"]["file"]).read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"featx_\w+", rule["expr"])}
    assert len(asked) == 5
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            asked |= set(re.findall(r"featx_\w+", target["expr"]))
    assert asked <= known
    assert len(asked) >= 9
    stages = set(re.findall(r'stage="(\w+)"', json.dumps(dashboard).replace("\\\\", "").replace('\\"', '"')))
    assert stages == {"total", "decode", "network", "encode"}
    assert dashboard["uid"] in (CLUSTER / "compose-serve.yaml").read_text().split("/d/")[1][:10]


def health_check() -> str:
    """The program in the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    program = re.search(r'HEALTHCHECK .* CMD \["python", "-c", "(.*?)"\]', text)[1]
    return program.replace("\\\\", "\\")


def test_the_health_check_is_of_serve_alone(tmp_path):
    program = health_check()

    def status(process: int, port: int) -> int:
        text = program.replace("/proc/1/", f"/proc/{process}/")
        words = [sys.executable, "-c", text]
        return subprocess.run(words, env={"FEATX_PORT": str(port)}, stderr=subprocess.DEVNULL, check=False).returncode

    with serving(tmp_path / "log.txt") as served:
        assert status(served.process.pid, served.address[1]) == 0
        assert status(served.process.pid, 9) != 0
    other = subprocess.Popen(["sleep", "60"])
    assert status(other.pid, 9) == 0
    other.kill()
    other.wait()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no Prometheus here")
def test_prometheus_itself_scrapes_the_service_and_answers_what_the_dashboard_asks(tmp_path):
    composed = yaml.safe_load((CLUSTER / "compose-serve.yaml").read_text())
    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    write_photo(tmp_path / "photo.jpg", 0)
    content = (tmp_path / "photo.jpg").read_bytes()
    with serving(tmp_path / "log") as service, socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        settings = composed["configs"]["prometheus"]["content"]
        settings = settings.replace("featx:8000", "{}:{}".format(*service.address)).replace("15s", "1s")
        shutil.copy(CLUSTER / "prometheus-alerts.yaml", tmp_path)
        (tmp_path / "prometheus.yml").write_text(settings.replace("scrape_interval: 10s", "scrape_interval: 1s"))
        held.close()
        words = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
                 f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
        with (
            (tmp_path / "prometheus.log").open("w") as log,
            subprocess.Popen(["prometheus", *words], stdout=log, stderr=log) as process,
        ):
            try:
                alerts: list[dict[str, str]] = []
                unanswered = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
                until = time.monotonic() + 60
                while (unanswered or {alert["health"] for alert in alerts} != {"ok"}) and time.monotonic() < until:
                    service.image("/v1/features?layers=fc7", content)
                    service.image("/v1/features?layers=fc9", content)  # refused
                    time.sleep(0.5)
                    unanswered -= {query for query in unanswered if _answered(port, query)}
                    alerts = _alerts(port)
            finally:
                process.terminate()
    assert not unanswered
    assert [(alert["health"], alert["state"]) for alert in alerts] == [("ok", "inactive")] * 6


def _alerts(port: int) -> list[dict[str, str]]:
    """The rules that Prometheus has, with their health; none while it begins."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/rules", timeout=10) as answer:
            return json.load(answer)["data"]["groups"][0]["rules"]
    except (urllib.error.URLError, ConnectionError, IndexError):
        return []


def _answered(port: int, query: str) -> bool:
    """Whether Prometheus has numbers for a query that are none of NaN."""
    place = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(place, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return False  # it begins
    return any(one["value"][1] != "NaN" for one in found)
