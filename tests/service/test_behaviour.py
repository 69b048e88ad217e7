"""What the service does when it is asked too much, too slowly, wrongly, or told to end."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import threading
import time

import pytest
from serving import form, serving


@pytest.fixture(scope="module")
def photos(material):
    return [photo.read_bytes() for photo in sorted((material / "photos").rglob("*.jpg"))]


@pytest.fixture(scope="module")
def strict(material, tmp_path_factory):
    """A service with small limits, one thread and a larger network."""
    log = tmp_path_factory.mktemp("strict") / "log.txt"
    words = ["--queue", "4", "--workers", "1", "--max-body", "1M", "--read-timeout", "1", "--weights", "random:0"]
    with serving(log, *words, net="squeezenet1_1", layers="classifier.1") as served:
        yield served


@contextlib.contextmanager
def connected(served):
    with socket.create_connection(served.address, timeout=20) as found:
        yield found


def rest(connection: socket.socket) -> bytes:
    """All that still comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def problem_in(answer: bytes) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    return json.loads(body)


def test_a_full_queue_is_429_with_retry_after_and_nothing_is_lost(strict, photos):
    answers: list[tuple[int, str | None]] = []
    lock = threading.Lock()

    def client() -> None:
        status, headers, _ = strict.image("/v1/features", photos[0])
        with lock:
            answers.append((status, headers["Retry-After"]))

    threads = [threading.Thread(target=client) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200, 429}
    assert all((after == "1") == (status == 429) for status, after in answers)
    assert strict.metric("featx_rejected_total") == sum(status == 429 for status, _ in answers)
    assert strict.metric("featx_queue_images") == 0


def test_more_images_than_the_queue_holds_are_413(strict, photos):
    body, kind = form(photos[:5])
    status, _, answer = strict.ask("POST", "/v1/features", body, Content_Type=kind)
    assert status == 413
    assert "the queue holds 4" in json.loads(answer)["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_413_before_it_is_there(strict, chunked):
    with connected(strict) as connection:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {500 << 20}"
        connection.sendall(
            f"POST /v1/features HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n{length}\r\n\r\n".encode()
        )
        sent = 0
        piece = b"x" * (1 << 16)
        with contextlib.suppress(OSError):
            for _ in range(400):  # 25 MB at most
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                sent += len(piece)
                if not chunked:
                    break
        assert sent < 24 << 20
        problem = problem_in(rest(connection))
    assert problem["status"] == 413
    assert "larger than 1,000,000 bytes" in problem["detail"]


def test_senders_that_stop_are_closed_with_408(strict):
    """In the request line, in the headers, in the body, and before anything was sent."""
    beginnings = [
        b"", b"POST /v1/feat", b"POST /v1/features HTTP/1.1\r\nHost: x\r\nX-A: ",
        b"POST /v1/features HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 100\r\n\r\nabc",
    ]  # fmt: skip
    for beginning in beginnings:
        started = time.monotonic()
        with connected(strict) as connection:
            connection.sendall(beginning)
            problem = problem_in(rest(connection))
        assert problem["status"] == 408, beginning
        assert time.monotonic() - started < 10


def test_senders_that_drip_headers_are_closed(strict):
    with connected(strict) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 15:
                connection.sendall(b"X-A: b\r\n")
                time.sleep(0.2)
        assert time.monotonic() - started < 10


def test_half_of_a_next_request_does_not_keep_a_connection_open(strict):
    whole = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    for rest_of_it in (b"GET /v2/hea", b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"):
        started = time.monotonic()
        with connected(strict) as connection:
            connection.sendall(whole + rest_of_it)
            answer = rest(connection)
        assert b'{"live":true}' in answer
        assert time.monotonic() - started < 10  # not the 75 s that a connection may be idle


def test_a_second_request_on_the_same_connection_may_come_later(strict):
    connection = http.client.HTTPConnection(*strict.address, timeout=20)
    for _ in range(2):
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
        time.sleep(1.5)  # longer than a sender may be silent within a request
    connection.close()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"nonsense\r\n\r\n", b"GET /\r\n\r\n"])
def test_what_is_no_http_is_400(strict, garbage):
    with connected(strict) as connection:
        connection.sendall(garbage)
        assert problem_in(rest(connection))["status"] in (400, 408)


def test_pipelined_requests_and_then_garbage(strict):
    with connected(strict) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"garbage\r\n\r\n")
        answer = rest(connection)
    assert answer.count(b'{"live":true}') == 2
    assert b'"status":400' in answer


def test_work_whose_client_has_gone_is_dropped(tmp_path, photos):
    words = ["--workers", "1", "--weights", "random:0"]
    with serving(tmp_path / "log.txt", *words, net="squeezenet1_1", layers="classifier.1") as served:
        body, kind = form(photos * 6)  # more than one block
        connection = http.client.HTTPConnection(*served.address)
        connection.request("POST", "/v1/features", body, {"Content-Type": kind})
        while served.metric("featx_queue_images") == 0:
            time.sleep(0.01)
        connection.sock.close()
        connection.close()
        deadline = time.monotonic() + 20
        while served.metric("featx_dropped_images_total") == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert served.metric("featx_dropped_images_total") > 10
        assert served.image("/v1/features", photos[0])[0] == 200
        served.stop()
        text = served.log.read_text()
    assert '"status": 499' in text
    assert all(line.startswith("{") for line in text.splitlines())


def test_a_request_that_is_not_answered_in_time_is_504_and_what_is_left_of_it_dropped(tmp_path, photos):
    words = ["--workers", "1", "--weights", "random:0", "--deadline", "0.3"]
    with serving(tmp_path / "log.txt", *words, net="squeezenet1_1", layers="classifier.1") as served:
        body, kind = form(photos * 12)
        status, _, answer = served.ask("POST", "/v1/features", body, Content_Type=kind)
        assert status == 504
        assert json.loads(answer)["detail"] == "not computed within 0.3 s (--deadline)"
        deadline = time.monotonic() + 20
        while served.metric("featx_dropped_images_total") == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert served.metric("featx_dropped_images_total") > 10
        assert served.image("/v1/features", photos[0])[0] == 200


def test_sigterm_answers_what_is_in_hand_and_ends_with_0(material, tmp_path, photos):
    words = ["--workers", "1", "--weights", "random:0", "--grace", "20"]
    with serving(tmp_path / "log.txt", *words, net="squeezenet1_1", layers="classifier.1") as served:
        answers: list[int] = []
        body, kind = form(photos * 4)
        ask = threading.Thread(
            target=lambda: answers.append(served.ask("POST", "/v1/features", body, Content_Type=kind)[0])
        )
        ask.start()
        while served.metric("featx_requests_in_flight") < 2:  # that one, and the question itself
            time.sleep(0.01)
        assert served.stop() == 0
        ask.join()
        assert answers == [200]
        with pytest.raises(OSError, match="refused"):
            served.ask("GET", "/v2/health/live")
    assert "Traceback" not in served.log.read_text()


def test_a_half_sent_body_does_not_hold_up_the_end(tmp_path):
    with serving(tmp_path / "log.txt", "--grace", "2", "--read-timeout", "60") as served, connected(served) as half:
        half.sendall(b"POST /v1/features HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        time.sleep(0.3)
        started = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - started < 15


def test_sighup_loads_heads_anew_without_losing_a_request(material, tmp_path, photos):
    import shutil

    head = tmp_path / "h.safetensors"
    shutil.copy(material / "svm.safetensors", head)
    with serving(tmp_path / "log.txt", "--head", f"h={head}") as served:
        wrong, stop = [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                status, _, body = served.image("/v1/predict", photos[0])
                if status != 200:
                    wrong.append(body)

        asking = threading.Thread(target=ask)
        asking.start()
        before = json.loads(served.ask("GET", "/v1/models/h")[2])["fingerprint"]
        shutil.copy(material / "softmax.safetensors", head)
        served.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while json.loads(served.ask("GET", "/v1/models/h")[2])["fingerprint"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert json.loads(served.image("/v1/predict", photos[0])[2])["images"][0]["probability"] is not None
        head.write_bytes(b"no head")
        served.process.send_signal(signal.SIGHUP)
        while "the service goes on as before" not in served.log.read_text():
            assert time.monotonic() < deadline + 30
            time.sleep(0.05)
        assert json.loads(served.image("/v1/predict", photos[0])[2])["images"][0]["probability"] is not None
        stop.set()
        asking.join()
        assert not wrong, served.log.read_text()


def test_a_killed_service_is_up_again_and_gives_the_same(material, tmp_path, photos):
    with serving(tmp_path / "log.txt") as first:
        before = first.image("/v1/features", photos[0])[2]
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    with serving(tmp_path / "log.txt") as second:
        assert second.ask("GET", "/v2/health/ready")[0] == 200
        assert second.image("/v1/features", photos[0])[2] == before


def test_a_port_that_is_taken_is_said(server, featx):
    port = server.address[1]
    outcome = featx("serve", "-b", "alexnet-mini", "--port", port)
    assert outcome.status == 2
    assert f"--port {port}" in outcome.err
    assert "in use" in outcome.err


def test_the_log_has_one_json_object_for_each_request(server, photos):
    server.image("/v1/features", photos[0], X_Request_Id="mine-7")
    deadline = time.monotonic() + 10
    mine: list[dict] = []
    while not mine and time.monotonic() < deadline:  # it is written when the answer is on its way
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        mine = [line for line in lines if line["id"] == "mine-7"]
    assert len(mine) == 1
    assert (mine[0]["status"], mine[0]["images"], mine[0]["path"]) == (200, 1, "/v1/features")


def test_metrics_tell_what_happened(server, photos):
    before = {name: server.metric(name) for name in ("featx_images_total", "featx_seconds_count")}
    server.image("/v1/features", photos[0])
    assert server.metric("featx_images_total") == before["featx_images_total"] + 1
    assert server.metric("featx_seconds_count") >= before["featx_seconds_count"] + 4  # decode, network, encode, total
    assert server.metric("featx_resident_bytes") > 1e8
    assert server.metric("featx_ready") == 1
    for accept in ("text/plain", "application/openmetrics-text"):
        assert server.ask("GET", "/metrics", Accept=accept)[0] == 200


def test_the_bits_are_the_same_with_one_thread_and_with_four(tmp_path, photos):
    found = []
    for workers in ("1", "4"):
        with serving(tmp_path / "log.txt", "--workers", workers) as served:
            body, kind = form(photos)
            found.append(
                served.ask("POST", "/v1/features?layers=fc7", body, Content_Type=kind, Accept="application/x-npy")[2]
            )
    assert found[0] == found[1]
