"""featx serve beside FastAPI + torch as people write it, LitServe, and `featx extract`, in one run.

    python benchmarks/serve.py PHOTO.jpg [--turns 3] [--requests 60 240 480 640]    # needs ab and litserve
    python benchmarks/serve.py PHOTO.jpg --endurance 20000
    python benchmarks/serve.py PHOTO.jpg --kill

AlexNet's fc7, random weights, one JPEG, .npy answers; the load is made by ab on the same cores, the servers take
turns. For each number of clients: requests a second, milliseconds of the median and the 99th percentile, and CPU
milliseconds of the server's processes for a request, all medians of the turns. --endurance sends mixed good and bad
input and looks at memory, descriptors and threads. --kill sends SIGKILL under load and measures the restart.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from environment import machine

CLIENTS = (1, 4, 16, 64)
PORTS = {"featx": 8471, "FastAPI + torch": 8472, "LitServe": 8473}

# What people write: https://fastapi.tiangolo.com and torchvision's own example of a feature extractor, put together.
FASTAPI = """
import io, sys, numpy, torch, uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from PIL import Image
from torchvision.models import alexnet, AlexNet_Weights
from torchvision.models.feature_extraction import create_feature_extractor

torch.manual_seed(0)
network = create_feature_extractor(alexnet().eval(), {"classifier.5": "fc7"})
prepare = AlexNet_Weights.DEFAULT.transforms()
app = FastAPI()

@app.post("/")
async def features(request: Request):
    body = await request.body()
    return Response(compute(body), media_type="application/x-npy")

@torch.inference_mode()
def compute(body):
    image = Image.open(io.BytesIO(body)).convert("RGB")
    found = network(prepare(image).unsqueeze(0))["fc7"].numpy()
    out = io.BytesIO()
    numpy.save(out, found)
    return out.getvalue()

uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""

LITSERVE = """
import io, sys, numpy, torch, litserve
from fastapi import Response
from PIL import Image
from torchvision.models import alexnet, AlexNet_Weights
from torchvision.models.feature_extraction import create_feature_extractor

class Features(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.network = create_feature_extractor(alexnet().eval(), {"classifier.5": "fc7"})
        self.prepare = AlexNet_Weights.DEFAULT.transforms()
    def decode_request(self, request):
        return request["content"].file.read()
    def batch(self, bodies):
        return torch.stack([self.prepare(Image.open(io.BytesIO(body)).convert("RGB")) for body in bodies])
    def predict(self, images):
        with torch.inference_mode():
            return self.network(images)["fc7"].numpy()
    def unbatch(self, output):
        return list(output)
    def encode_response(self, row):
        out = io.BytesIO()
        numpy.save(out, row[None])
        return Response(out.getvalue(), media_type="application/x-npy")

if __name__ == "__main__":
    api = Features(max_batch_size=16, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
"""


def command(name: str, scratch: Path) -> list[str]:
    port = str(PORTS[name])
    if name == "featx":
        words = ["serve", "-b", "alexnet", "-l", "fc7", "-w", "random:0", "--device", "cpu", "--port", port]
        return [sys.executable, "-m", "featx", *words]
    script = scratch / f"{name.split(maxsplit=1)[0].lower()}_server.py"
    script.write_text(FASTAPI if name.startswith("FastAPI") else LITSERVE)
    return [sys.executable, str(script), port]


def target(name: str) -> str:
    path = {"featx": "v1/features?layers=fc7", "FastAPI + torch": "", "LitServe": "predict"}[name]
    return f"http://127.0.0.1:{PORTS[name]}/{path}"


def sent(name: str, photo: Path) -> tuple[bytes, str]:
    """What a server is sent, and its type: the file itself, or the form that LitServe takes files in."""
    if name != "LitServe":
        return photo.read_bytes(), "image/jpeg"
    head = (
        b'--x\r\nContent-Disposition: form-data; name="content"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return head + photo.read_bytes() + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def wait_until_up(name: str, photo: Path, patience_s: float = 120) -> float:
    """Seconds until an image is answered."""
    started = time.monotonic()
    body, kind = sent(name, photo)
    headers = {"Content-Type": kind, "Accept": "application/x-npy"}
    while time.monotonic() - started < patience_s:
        with contextlib.suppress(OSError, http.client.HTTPException):
            request = urllib.request.Request(target(name), body, headers)
            urllib.request.urlopen(request, timeout=30).read()
            return time.monotonic() - started
        time.sleep(0.05)
    raise SystemExit(f"{name} does not come up")


@contextlib.contextmanager
def running(name: str, scratch: Path, photo: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (scratch / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command(name, scratch), stdout=log, stderr=log, process_group=0)
    try:
        wait_until_up(name, photo)
        yield process
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def processes_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    total = 0.0
    for one in processes_of(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def load(name: str, photo: Path, clients: int, requests: int) -> tuple[float, float, float]:
    """Requests a second, median and 99th percentile in ms, by ab."""
    body, kind = sent(name, photo)
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        words = ["ab", "-q", "-k", "-n", str(requests), "-c", str(clients), "-p", file.name, "-T", kind]
        done = subprocess.run(
            [*words, "-H", "Accept: application/x-npy", target(name)], capture_output=True, text=True, check=True
        )
    failed = re.search(r"Non-2xx responses:\s+(\d+)", done.stdout)
    if failed:
        raise SystemExit(f"{name}: {failed[1]} of {requests} refused")
    rate = float(re.search(r"Requests per second:\s+([\d.]+)", done.stdout)[1])
    percentile = {int(p): float(ms) for p, ms in re.findall(r"^\s+(\d+)%\s+(\d+)", done.stdout, re.M)}
    return rate, percentile[50], percentile[99]


def compare(photo: Path, turns: int, requests: list[int]) -> None:
    print(f"{machine()}; {photo.name}, {photo.stat().st_size:,} bytes; {turns} turns")
    found: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        servers = {name: stack.enter_context(running(name, scratch, photo)) for name in PORTS}
        for name in servers:
            load(name, photo, 4, 40)
        for _ in range(turns):
            for clients, count in zip(CLIENTS, requests, strict=True):
                for name, process in servers.items():
                    before = cpu_seconds(process)
                    outcome = load(name, photo, clients, count)
                    cpu = 1000 * (cpu_seconds(process) - before) / count
                    found.setdefault((name, clients), []).append((*outcome, cpu))
        rows = extract_rate(photo, scratch)
    print(f"{'clients':>18}" + "".join(f"{clients:>26}" for clients in CLIENTS))
    for name in PORTS:
        cells = []
        for clients in CLIENTS:
            rate, middle, high, cpu = (
                statistics.median(values) for values in zip(*found[name, clients], strict=True)
            )
            cells.append(f"{rate:6.1f}/s {middle:4.0f}/{high:<5.0f}{cpu:4.0f} ms")
        print(f"{name:>18}" + "".join(f"{cell:>26}" for cell in cells))
    for name in list(PORTS)[1:]:
        ratios = [median_of(found["featx", c], 0) / median_of(found[name, c], 0) for c in CLIENTS]
        cpu = [median_of(found["featx", c], 3) / median_of(found[name, c], 3) for c in CLIENTS]
        print(f"featx / {name}: requests " + ", ".join(f"{r:.2f}" for r in ratios) + "; CPU "
              + ", ".join(f"{r:.2f}" for r in cpu))  # fmt: skip
    per_cpu_second = 1000 / median_of(found["featx", 64], 3)
    print(
        f"featx extract: {rows[0]:.1f} images/s, {rows[1]:.1f} a CPU second; served at 64 clients: "
        f"{per_cpu_second:.1f}, {per_cpu_second / rows[1]:.0%}"
    )


def median_of(values: list[tuple[float, ...]], place: int) -> float:
    return statistics.median(value[place] for value in values)


def extract_rate(photo: Path, scratch: Path, images: int = 640) -> tuple[float, float]:
    """Images a second and images a CPU second of `featx extract`, without its start."""
    rates = []
    for count in (images // 10, images):
        photos = scratch / f"photos{count}"
        photos.mkdir()
        for number in range(count):
            (photos / f"{number}.jpg").symlink_to(photo.resolve())
        words = ["-b", "alexnet", "-l", "fc7", "-w", "random:0", "--device", "cpu", "--json"]
        before = psutil.Process().cpu_times()
        done = subprocess.run(
            [sys.executable, "-m", "featx", "extract", str(photos), *words, "-o", str(scratch / f"{count}.h5")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        after = psutil.Process().cpu_times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        rates.append((json.loads(done.stdout)["images_per_second"], used))
    return float(rates[1][0]), (images - images // 10) / (rates[1][1] - rates[0][1])


def endurance(photo: Path, requests: int) -> None:
    """Mixed good and bad input: memory, descriptors and threads before and after."""
    good = photo.read_bytes()
    boundary = b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n"
    form = boundary + good + b"\r\n" + boundary + b"no image\r\n--x--\r\n"
    kinds = [
        (good, "image/jpeg"), (good[: len(good) // 2], "image/jpeg"), (b"", "image/jpeg"), (b"{", "application/json"),
        (form, "multipart/form-data; boundary=x"), (b"text", "text/plain"), (good, "image/jpeg"),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, running("featx", Path(folder), photo) as process:
        own = psutil.Process(process.pid)
        statuses: dict[int, int] = {}
        lock = threading.Lock()

        def client(count: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", PORTS["featx"], timeout=120)
            for number in range(count):
                body, kind = kinds[number % len(kinds)]
                headers = {"Content-Type": kind, "Accept": "application/x-npy"}
                connection.request("POST", "/v1/features?layers=fc7", body, headers)
                answer = connection.getresponse()
                answer.read()
                with lock:
                    statuses[answer.status] = statuses.get(answer.status, 0) + 1
            connection.close()

        print(f"{machine()}; {requests:,} requests by 16 clients, {len(kinds)} kinds")
        memory = []
        for part in range(10):
            threads = [threading.Thread(target=client, args=(requests // 160,)) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            memory.append(own.memory_info().rss)
            print(
                f"{(part + 1) * (requests // 10):>7,}: {memory[-1] / 1e6:,.1f} MB, {own.num_fds()} descriptors, "
                f"{own.num_threads()} threads",
                flush=True,
            )
        print(
            f"statuses {dict(sorted(statuses.items()))}; growth after the first fifth: "
            f"{memory[-1] / memory[1] - 1:.2%}"
        )


def kill(photo: Path) -> None:
    """SIGKILL under load: what clients see, and how long the next one takes to be ready."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with running("featx", scratch, photo) as process:
            outcomes: list[str] = []

            def client() -> None:
                for _ in range(200):
                    try:
                        headers = {"Content-Type": "image/jpeg", "Accept": "application/x-npy"}
                        request = urllib.request.Request(target("featx"), photo.read_bytes(), headers)
                        size = len(urllib.request.urlopen(request, timeout=60).read())
                        outcomes.append("answer" if size == 128 + 4 * 4096 else f"{size} bytes")
                    except (OSError, http.client.HTTPException) as error:
                        outcomes.append(type(error).__name__)
                        return

            threads = [threading.Thread(target=client) for _ in range(16)]
            for thread in threads:
                thread.start()
            time.sleep(3)
            process.kill()
            for thread in threads:
                thread.join()
            print({kind: outcomes.count(kind) for kind in sorted(set(outcomes))})
        started = time.monotonic()
        with running("featx", scratch, photo):
            print(f"ready again {time.monotonic() - started:.1f} s after the start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--requests", type=int, nargs=4, default=[60, 240, 480, 640])
    parser.add_argument("--endurance", type=int)
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    if arguments.endurance:
        endurance(arguments.photo, arguments.endurance)
    elif arguments.kill:
        kill(arguments.photo)
    else:
        compare(arguments.photo, arguments.turns, arguments.requests)


if __name__ == "__main__":
    main()
