"""Reranking and answering by an endpoint: end-to-end over HTTP, to a server with a real network."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from ragllava.errors import ModelUnavailable, RagllavaError, ScoreRejected, ServiceUnavailable, SettingsError
from ragllava.models.adapters import AdapterSet
from ragllava.models.bundle import ModelBundle
from ragllava.models.device import plan_device
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.models.reranker import Pair, Reranker
from ragllava.models.vllm import parity_gate
from ragllava.models.vllm.endpoint import Endpoint
from ragllava.models.vllm.golden import GoldenAnswer, GoldenScores, Parity, compare
from ragllava.models.vllm.models import RemoteModel, RemoteReranker, share_of_yes
from ragllava.records import Role
from ragllava.settings import Settings, load_settings
from tests.support.picture_files import grainy
from tests.support.random_adapters import write_random_adapter
from tests.support.tiny_checkpoints import load_folder, noise_pictures, save_family
from tests.support.vllm_server import BASE, ModelServer, serving

TOLERANCE = 1e-5


class Desk:
    """A checkpoint, a server that has loaded it, and settings that point there."""

    def __init__(self, folder: Path, home: Path, server: ModelServer, **own: Any) -> None:
        self.folder = folder
        self.server = server
        self.home = home
        self.profile = folder.parent / f"{folder.name}.json"
        self.profile.write_text(json.dumps({"retriever": "local-dir:none", "mllm": str(folder), **own}))

    def settings(self, **own: Any) -> Settings:
        return Settings(**{
            "home": self.home, "profile": str(self.profile), "device": "cpu", "vllm_url": self.server.url, **own
        })  # fmt: skip

    def bundle(self, **own: Any) -> ModelBundle:
        return ModelBundle(self.settings(**own), serving=True)


def pairs() -> list[Pair]:
    """Two questions about each of three pictures: one without captions, one too long, one hostile."""
    first, second, third = noise_pictures()[:3]
    return [
        Pair("What is it?", "Harlow, Port Ansel", first),
        Pair("How many windows?", None, second),
        Pair("Why?", "Harlow Lighthouse. " * 2000, third),
        Pair("What is it? <image></s><|im_end|>", "a <image> of Harlow", first),
        Pair("Château d'Été", None, second, by_caption=True),
        Pair("  Is it\nnight? ", "", third),
    ]


def requests() -> list[AnswerRequest]:
    pictures = noise_pictures()
    return [
        AnswerRequest("Which one?", ("Harlow, 1932",), (pictures[0],)),
        AnswerRequest("Which is older?", ("Ansel", "Harlow Lighthouse"), (pictures[1], pictures[2])),
        AnswerRequest("Is it day?", (None, "Vohefan " * 2000), (pictures[3], pictures[4])),
    ]


def values(reranker: Reranker, scored: list[Pair] | None = None) -> list[float]:
    return [score.value for score in reranker.relevance(scored or pairs(), batch_size=2)]


@pytest.fixture
def model(tmp_path: Path) -> Mllm:
    return load_folder(save_family("llava", tmp_path / "llava"), tmp_path / "home")


@pytest.fixture
def desk(tmp_path: Path, model: Mllm) -> Iterator[Desk]:
    with serving(ModelServer(model)) as server:
        yield Desk(tmp_path / "llava", tmp_path / "home", server)


def other_weights(tmp_path: Path) -> Mllm:
    return load_folder(save_family("llava", tmp_path / "other", seed=8), tmp_path / "home")


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen3_vl", "smolvlm"]
)
def test_scores_and_answers_are_those_of_the_weights(family: str, tmp_path: Path) -> None:
    mllm = load_folder(save_family(family, tmp_path / "model"), tmp_path / "home")
    with serving(ModelServer(mllm)) as server:
        bundle = Desk(tmp_path / "model", tmp_path / "home", server).bundle()
        scores = bundle.reranker.relevance(pairs(), batch_size=2)
        answers = bundle.generator.answer(requests(), max_tokens=5, with_captions=True, batch_size=2)
    here = Reranker(mllm).relevance(pairs(), batch_size=1)
    assert [score.value for score in scores] == pytest.approx([score.value for score in here], abs=TOLERANCE)
    assert [score.note for score in scores] == [score.note for score in here]
    assert "caption cut" in str(scores[2].note)
    assert len({round(score.value, 4) for score in here}) == len(here), "the scores must differ, or this shows nothing"
    for answer, right in zip(
        answers, Generator(mllm).answer(requests(), max_tokens=5, with_captions=True, batch_size=1), strict=True
    ):
        assert (answer.text, answer.note) == (right.text, right.note)
        assert answer.confidence == pytest.approx(right.confidence, abs=TOLERANCE)
    assert bundle.reranker.version == bundle.generator.version == bundle.base_version != ""


def test_pictures_are_padded_here_for_an_endpoint_that_does_not_do_it(tmp_path: Path, model: Mllm) -> None:
    """The server's processor is the checkpoint's own, which cuts away what lies outside the middle square."""
    with serving(ModelServer(model)) as server:
        bundle = Desk(tmp_path / "llava", tmp_path / "home", server, pad_pictures=True).bundle()
        profile, home = bundle.profile, bundle.settings
        here = load_mllm(profile, plan_device(home), home)
        wide, tall = (grainy(size, 90).convert("RGB") for size in ((90, 30), (30, 90)))
        asked = [Pair("Is it day?", "Harlow", picture) for picture in (wide, tall, wide.resize((40, 40)))]
        there = values(bundle.reranker, asked)
        assert there == pytest.approx(values(Reranker(here), asked), abs=TOLERANCE)
        assert there[:2] != pytest.approx(values(Reranker(model), asked)[:2], abs=1e-3), "padding must matter"
    assert bundle.base_version == here.version != model.version
    assert bundle.mllm_files == here.files
    assert set(here.files) - set(model.files) == {"pad_pictures"}


def test_the_mini_model_is_served_under_its_own_version(tmp_path: Path) -> None:
    here = ModelBundle(Settings(home=tmp_path, device="cpu"))
    with serving(ModelServer(here.reranker.mllm)) as server:
        there = ModelBundle(Settings(home=tmp_path, device="cpu", vllm_url=f"{server.url}/v1/"), serving=True)
        there.warm_up()
        name, parity = there.parity()
        assert values(there.reranker) == pytest.approx(values(here.reranker), abs=TOLERANCE)
        assert there.reranker.version == here.reranker.version == there.base_version
        assert there.mllm_files == here.mllm_files
        shared, right = there.reranker.sharing, here.reranker.sharing
        assert (
            shared
            and right
            and (shared.prefix_tokens, shared.ending_tokens) == (right.prefix_tokens, right.ending_tokens)
        )
    with pytest.raises(ModelUnavailable, match="does not answer"):  # a worker that starts now ends with the reason
        ModelBundle(there.settings, serving=True).warm_up()
    assert name == BASE
    assert parity.largest < TOLERANCE
    assert parity.highest - parity.lowest > 0.5, "the golden pairs must tell models apart"


def test_only_a_process_that_serves_uses_the_endpoint(desk: Desk) -> None:
    assert not ModelBundle(desk.settings()).is_remote
    assert ModelBundle(desk.settings(), serving=True).is_remote
    assert not ModelBundle(desk.settings(vllm_url=None), serving=True).is_remote


def test_questions_about_a_picture_come_one_after_another_and_pictures_at_once(desk: Desk) -> None:
    reranker = desk.bundle(vllm_requests=2).reranker
    asked = [Pair(f"Question {number}?", "Harlow", picture) for number in range(3) for picture in noise_pictures()]
    desk.server.bodies.clear()
    values(reranker, asked)
    by_picture: dict[str, list[str]] = {}
    for picture, body in zip(desk.server.pictures_asked_about(), desk.server.bodies, strict=True):
        by_picture.setdefault(picture, []).append(body["messages"][0]["content"][1]["text"].split("\n")[1])
    assert list(by_picture.values()) == [[f"Question: Question {number}?" for number in range(3)]] * 6
    assert desk.server.most_at_once <= 2


# Who may serve


def test_a_server_with_other_weights_is_refused(desk: Desk, tmp_path: Path) -> None:
    desk.server.mllm = other_weights(tmp_path)
    with pytest.raises(ModelUnavailable, match=r"must not serve: its the-base is not llava-llava@\w{8} within .*=0.02"):
        _ = desk.bundle().reranker
    with pytest.raises(ModelUnavailable, match="golden pair 1 scores"):
        desk.bundle().apply_adapter(Role.GENERATOR, None, None)


def test_a_server_with_another_template_is_refused(desk: Desk) -> None:
    processor = desk.server.mllm.processor
    processor.chat_template = processor.chat_template.replace("<image>\n", "<image>")
    with pytest.raises(ModelUnavailable, match=r"has read a prompt of .* tokens that are not the"):
        _ = desk.bundle().reranker


def test_a_server_that_changes_its_weights_later_is_refused(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = desk.bundle()
    bundle.apply_adapter(Role.RERANKER, None, None)
    desk.server.mllm = other_weights(tmp_path)
    bundle.apply_adapter(Role.RERANKER, None, None)  # too soon for another check
    monkeypatch.setattr(parity_gate, "_CHECK_AGAIN_S", 0.0)
    with pytest.raises(ModelUnavailable, match="must not serve"):
        bundle.apply_adapter(Role.RERANKER, None, None)


def test_of_several_bases_the_right_one_must_be_named(desk: Desk) -> None:
    desk.server.names = ("one", "two")
    with pytest.raises(ModelUnavailable, match=r"serves one, two; set RAGLLAVA_VLLM_MODEL to"):
        _ = desk.bundle().reranker
    assert desk.bundle(vllm_model="two").parity()[0] == "two"
    assert {body["model"] for body in desk.server.bodies} == {"two"}


def test_an_adapter_is_asked_for_by_its_name_and_never_replaced_by_the_base(desk: Desk, tmp_path: Path) -> None:
    folder = write_random_adapter(tmp_path / "adapter", desk.server.mllm.network, seed=1)
    bundle = desk.bundle()
    bare = values(bundle.reranker)
    with pytest.raises(ModelUnavailable, match=f"does not serve ranker-1; start it with .*'ranker-1={folder}'"):
        bundle.apply_adapter(Role.RERANKER, "ranker-1", folder)
    assert bundle.reranker.version == bundle.base_version, "nothing has changed"

    adapter = AdapterSet(desk.server.mllm, tmp_path).add("any", folder)
    desk.server.adapters = {"ranker-1": adapter}
    bundle.apply_adapter(Role.RERANKER, "ranker-1", folder)
    assert bundle.reranker.version == "ranker-1"
    tuned = values(bundle.reranker)
    assert tuned == pytest.approx(values(Reranker(desk.server.mllm, adapter)), abs=TOLERANCE)
    assert tuned != pytest.approx(bare, abs=0.01)
    assert bundle.generator.version == bundle.base_version


def test_other_bytes_under_an_adapters_name_are_refused(desk: Desk, tmp_path: Path) -> None:
    right, wrong = (write_random_adapter(tmp_path / f"{n}", desk.server.mllm.network, seed=n) for n in (1, 2))
    desk.server.adapters = {"ranker-1": AdapterSet(desk.server.mllm, tmp_path).add("any", wrong)}
    with pytest.raises(ModelUnavailable, match="its ranker-1 is not the adapter in"):
        desk.bundle().apply_adapter(Role.RERANKER, "ranker-1", right)


def test_too_few_pictures_for_a_prompt_are_noticed_before_the_first_question(desk: Desk) -> None:
    desk.server.images_per_prompt = 1
    with pytest.raises(ModelUnavailable, match="larger --limit-mm-per-prompt"):
        _ = desk.bundle().generator
    generator = desk.bundle(top_n=1).generator
    with pytest.raises(
        ScoreRejected, match=r"refuses the prompt \(400\): At most 1 image.*larger --limit-mm-per-prompt"
    ):
        generator.answer(requests(), max_tokens=2, with_captions=True, batch_size=1)


def test_golden_scores_stand_in_for_weights_that_are_elsewhere(desk: Desk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "llava"
    shutil.copytree(desk.folder, elsewhere, ignore=shutil.ignore_patterns("*.safetensors"))
    light = Desk(elsewhere, tmp_path / "light", desk.server)
    with pytest.raises(ModelUnavailable, match=r"has no weights, and there are no golden scores"):
        _ = light.bundle().reranker
    right = desk.bundle()
    expected = values(right.reranker)
    golden = desk.home / "cache" / "golden"
    bundle = light.bundle(vllm_golden_dir=golden)
    assert values(bundle.reranker) == pytest.approx(expected, abs=TOLERANCE)
    assert (bundle.base_version, bundle.mllm_files) == (right.base_version, right.mllm_files)

    desk.server.mllm = other_weights(tmp_path)
    with pytest.raises(ModelUnavailable, match="must not serve"):
        _ = light.bundle(vllm_golden_dir=golden).reranker
    (elsewhere / "config.json").write_text((elsewhere / "config.json").read_text() + "\n")
    with pytest.raises(ModelUnavailable, match=r"has no weights, and there are no golden scores"):
        _ = light.bundle(vllm_golden_dir=golden).reranker


def test_damaged_golden_scores_are_reported(desk: Desk) -> None:
    _ = desk.bundle().reranker
    [file] = (desk.home / "cache" / "golden").iterdir()
    file.write_text("{}")
    with pytest.raises(ModelUnavailable, match=f"{file} is damaged"):
        _ = desk.bundle().reranker


# Failures


def test_an_unreachable_endpoint_is_retryable(desk: Desk) -> None:
    nowhere = desk.bundle(vllm_url="http://127.0.0.1:9")
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9 does not answer"):
        nowhere.apply_adapter(Role.RERANKER, None, None)


def test_an_endpoint_that_does_not_answer_in_time_is_an_error(desk: Desk) -> None:
    # Not admitted by the golden pairs: on a busy machine, their answers take longer than that.
    endpoint = Endpoint(desk.settings(vllm_timeout_s=0.3))
    reranker = RemoteReranker(RemoteModel(endpoint, BASE, desk.server.mllm, requests=1))
    never = threading.Event()

    def wait(_body: dict[str, Any]) -> Response | None:
        never.wait(60)
        return None

    desk.server.instead = wait
    try:
        with pytest.raises(ServiceUnavailable, match=r"does not answer .*timed out"):
            values(reranker, pairs()[:1])
    finally:
        never.set()


def refusal(status: int, message: str = "no") -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (400, ScoreRejected, r"refuses the prompt \(400\): no"),
        (422, ScoreRejected, r"refuses the prompt \(422\): no"),
        (401, ServiceUnavailable, r"refuses the key \(401\): set RAGLLAVA_VLLM_API_KEY"),
        (404, ServiceUnavailable, "does not serve the-base any more"),
        (429, ServiceUnavailable, r"failed \(429\)"),
        (500, ServiceUnavailable, r"failed \(500\): no"),
        (503, ServiceUnavailable, r"failed \(503\)"),
    ],
)
def test_a_status_decides_whether_the_error_is_retryable(
    desk: Desk, status: int, error: type[RagllavaError], sentence: str
) -> None:
    bundle = desk.bundle()
    reranker, generator = bundle.reranker, bundle.generator
    desk.server.instead = lambda _body: refusal(status)
    with pytest.raises(error, match=sentence):
        values(reranker, pairs()[:1])
    with pytest.raises(error, match=sentence):
        generator.answer(requests()[:1], max_tokens=2, with_captions=True, batch_size=1)


def test_retry_after_is_ignored(desk: Desk) -> None:
    reranker = desk.bundle().reranker
    answer = JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After": "3600"})
    desk.server.instead = lambda _body: answer
    errors: list[RagllavaError] = []

    def ask() -> None:
        try:
            values(reranker, pairs()[:1])
        except RagllavaError as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(60)
    assert [type(error) for error in errors] == [ServiceUnavailable]


def test_a_short_failure_is_retried(desk: Desk) -> None:
    reranker = desk.bundle().reranker
    right = values(reranker)
    failures = iter([refusal(503), refusal(502)])
    desk.server.instead = lambda _body: next(failures, None)
    assert values(reranker) == right


def first_token(answer: dict[str, Any], **changed: Any) -> dict[str, Any]:
    answer["choices"][0]["logprobs"]["content"][0] |= changed
    return answer


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda answer: {**answer, "choices": []}, "is incomplete"),
        (
            lambda answer: {**answer, "choices": [{"message": {"content": "Yes"}, "logprobs": None}]},
            "is incomplete",
        ),
        (lambda answer: first_token(answer, token="Yes"), "the token 'Yes' instead of its id"),
        (lambda answer: first_token(answer, logprob=None), "is incomplete"),
        (lambda answer: {**answer, "usage": {"prompt_tokens": 3}}, "has read a prompt of 3 tokens"),
        (lambda answer: {**answer, "prompt_token_ids": answer["prompt_token_ids"][::-1]}, "tokens that are not the"),
    ],
)
def test_an_incomplete_answer_is_not_a_score(desk: Desk, change: Any, sentence: str) -> None:
    reranker = desk.bundle().reranker
    desk.server.changed = change
    with pytest.raises(ScoreRejected, match=sentence):
        values(reranker, pairs()[:1])


def test_an_answer_that_is_not_json_is_not_a_score(desk: Desk) -> None:
    reranker = desk.bundle().reranker
    desk.server.instead = lambda _body: Response("<html>", status_code=200)
    with pytest.raises(ScoreRejected, match="is not JSON"):
        values(reranker, pairs()[:1])


def test_the_key_is_sent_and_not_shown(desk: Desk) -> None:
    desk.server.key = "an open secret"
    with pytest.raises(ServiceUnavailable, match="RAGLLAVA_VLLM_API_KEY") as refused:
        _ = desk.bundle(vllm_api_key="a wrong key").reranker
    assert "a wrong key" not in str(refused.value)
    assert desk.bundle(vllm_api_key="an open secret").parity()[0] == BASE


# Yes and No


def test_a_server_that_lists_only_the_likeliest_serves_where_yes_and_no_are_among_them(tmp_path: Path) -> None:
    """Of the mini model they are: it is trained to answer one of the two."""
    here = ModelBundle(Settings(home=tmp_path, device="cpu"))
    with serving(ModelServer(here.reranker.mllm, knows_logprob_token_ids=False)) as server:
        there = ModelBundle(Settings(home=tmp_path, device="cpu", vllm_url=server.url), serving=True)
        assert values(there.reranker) == pytest.approx(values(here.reranker), abs=1e-3)


def test_the_share_of_yes() -> None:
    yes, no = 1, 2
    assert share_of_yes({yes: math.log(0.3), no: math.log(0.1)}, yes, no) == pytest.approx(0.75)
    assert share_of_yes({yes: -9999.0, no: 0.0}, yes, no) == 0.0
    # The missing one is at most as likely as the least likely listed.
    assert share_of_yes({yes: -0.01, 7: -9.0}, yes, no) == pytest.approx(1 - math.exp(-8.99), abs=1e-6)
    assert share_of_yes({no: -0.01, 7: -9.0}, yes, no) == pytest.approx(math.exp(-8.99), abs=1e-6)
    with pytest.raises(ScoreRejected, match="not both of Yes and No"):
        share_of_yes({yes: -0.01, 7: -2.0}, yes, no)
    with pytest.raises(ScoreRejected, match="neither of Yes and No"):
        share_of_yes({8: -0.01, 7: -20.0}, yes, no)


# Parity


@pytest.mark.parametrize(
    ("right", "given", "agrees"),
    [
        (GoldenAnswer("red", 0.9, 1), GoldenAnswer("red", 0.91, 1), True),
        (GoldenAnswer("red", 0.9, 1), GoldenAnswer("red", 0.8, 1), False),
        (GoldenAnswer("red", 0.9, 1), GoldenAnswer("blue", 0.9, 1), False),
        # Of two words as likely as each other, rounding chooses one.
        (GoldenAnswer("red", 0.5, 1), GoldenAnswer("blue", 0.49, 1), True),
    ],
)
def test_answers_agree_unless_they_were_sure(right: GoldenAnswer, given: GoldenAnswer, agrees: bool) -> None:
    expected, actual = GoldenScores([0.1, 0.9], [right]), GoldenScores([0.1, 0.89], [given])
    if agrees:
        parity = compare(expected, actual, tolerance=0.02)
        assert parity == Parity(parity.largest, lowest=0.1, highest=0.9, pairs=2)
        assert parity.largest == pytest.approx(0.01)
        return
    with pytest.raises(ModelUnavailable, match="a golden question is answered"):
        compare(expected, actual, tolerance=0.02)


# Settings


@pytest.mark.parametrize(
    "written", ["http://gpu:8000", "http://gpu:8000/", "http://gpu:8000/v1", "http://gpu:8000/v1/"]
)
def test_the_address_is_taken_with_or_without_its_v1(written: str) -> None:
    assert load_settings(vllm_url=written).vllm_url == "http://gpu:8000"


@pytest.mark.parametrize("written", ["gpu:8000", "http://", "redis://gpu:8000", "http://gpu:port"])
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(SettingsError, match=r"RAGLLAVA_VLLM_URL: this is not an address of the form http://host:port"):
        load_settings(vllm_url=written)
