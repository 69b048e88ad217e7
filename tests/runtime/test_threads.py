"""PyTorch's threads inside ours."""

from __future__ import annotations

import threading

import torch

from featx.runtime.threads import compute_on_one_thread


def test_a_thread_keeps_to_one_thread_whatever_others_set_meanwhile():
    began, go_on, found = threading.Event(), threading.Event(), []

    def work():
        compute_on_one_thread()
        began.set()
        go_on.wait(60)
        torch.ones(1_000_000).exp_()
        found.append(torch.get_num_threads())

    before = torch.get_num_threads()
    thread = threading.Thread(target=work)
    try:
        torch.set_num_threads(1)
        thread.start()
        assert began.wait(60)
        torch.set_num_threads(2)  # as whoever else computes sets the default back
        go_on.set()
        thread.join(60)
    finally:
        torch.set_num_threads(before)
    assert found == [1]
