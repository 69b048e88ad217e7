"""docs/tour.ipynb runs from beginning to end."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jupyter_client's and zmq's own
def test_the_tour_runs(tmp_path):
    notebook = nbformat.read(TOUR, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is stored without outputs"
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    done = client.execute()
    texts = ["".join(str(output) for output in cell.outputs) for cell in done.cells if cell.cell_type == "code"]
    assert "(450, 256)" in texts[1]
    assert float(texts[6].split("'text/plain': '")[1].split("'")[0]) > 0.85
