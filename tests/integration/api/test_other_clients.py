"""LiteLLM and curl against a real server, and the five lines of README as they stand."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.support.api_server import Front
from tests.support.pages import read_page
from tests.support.waiting import wait_for

ASKED = [{"role": "user", "content": "What color is the barn?"}]


@pytest.fixture
def litellm() -> object:
    with warnings.catch_warnings():  # its own, at import
        warnings.simplefilter("ignore")
        import litellm

    litellm.telemetry = False
    return litellm


@pytest.mark.filterwarnings("ignore")
def test_litellm_asks_questions(front: Front, litellm: object) -> None:
    import litellm as library

    options = {"api_base": f"{front.url}/v1", "api_key": front.key("ask", ["stamps"]), "num_retries": 0}
    answer = library.completion(model="openai/ragllava/stamps", messages=ASKED, **options)
    assert answer.choices[0].message.content == "yes"
    chunks = library.completion(model="openai/ragllava/stamps", messages=ASKED, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "yes"


@pytest.mark.filterwarnings("ignore")
def test_litellm_runs_a_batch(front: Front, litellm: object, tmp_path: Path) -> None:
    import litellm as library

    options = {
        "api_base": f"{front.url}/v1",
        "api_key": front.key("ask", ["stamps"]),
        "custom_llm_provider": "openai",
    }
    body = {"model": "ragllava/stamps", "messages": ASKED}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(line))
    with path.open("rb") as file:
        stored = library.create_file(file=file, purpose="batch", **options)
    batch = library.create_batch(
        input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="24h", **options
    )

    def has_ended() -> bool:
        return bool(library.retrieve_batch(batch_id=batch.id, **options).status == "completed")

    wait_for("the batch", has_ended, 60)
    ended = library.retrieve_batch(batch_id=batch.id, **options)
    content = library.file_content(file_id=ended.output_file_id, **options)
    assert json.loads(content.text)["custom_id"] == "a"
    assert batch.id in [each.id for each in library.list_batches(**options).data]


def test_curl(front: Front, tmp_path: Path) -> None:
    authorised = ["curl", "--silent", "--show-error", "--fail", "--header", f"Authorization: Bearer {front.key()}"]
    path = tmp_path / "q.jsonl"
    path.write_text("{}\n")

    def curl(*words: str) -> str:
        return subprocess.run([*authorised, *words], capture_output=True, text=True, check=True, timeout=60).stdout

    stored = json.loads(curl(f"{front.url}/v1/files", "--form", "purpose=batch", "--form", f"file=@{path}"))
    assert curl(f"{front.url}/v1/files/{stored['id']}/content") == "{}\n"
    body = json.dumps({"model": "ragllava/stamps", "messages": ASKED})
    chat = [f"{front.url}/v1/chat/completions", "--json", body]
    assert json.loads(curl(*chat))["choices"][0]["message"]["content"] == "yes"
    assert json.loads(curl("--request", "DELETE", f"{front.url}/v1/files/{stored['id']}"))["deleted"]


def test_the_lines_of_the_readme_run_as_they_stand(front: Front) -> None:
    [block] = read_page("README.md").blocks("python")
    here = block.replace("http://127.0.0.1:8600", front.url).replace("ragllava/holidays", "ragllava/stamps")
    assert here.count(front.url) == here.count("ragllava/stamps") == 1
    assert len(list(filter(None, block.splitlines()))) == 5
    environment = {"OPENAI_API_KEY": front.key(), "PATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", here], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert (ran.stdout, ran.stderr) == ("yes []\n", "")
