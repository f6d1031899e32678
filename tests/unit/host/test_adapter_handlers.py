"""Handlers of `adapters`: who may open what, loads as commands, quotas, and nothing that hangs or leaks."""

from __future__ import annotations

import base64
import json

import pytest
from arrays import NONE, u32
from fakes import NUMBER, Bench

from pieray.config import Limits
from pieray.errors import BadHandle, DeviceLost, InvalidRequest, NotFound, QuotaExceeded
from pieray.messages import PRIVATE, Completed, Failed, LoadAdapter, UnloadAdapter
from pieray.models.adapter_file import AdapterFacts


def fact(name: str, number: int, owner: str) -> AdapterFacts:
    return AdapterFacts(name, number, 8, 16.0, ("q_proj",), 64, owner, f"digest {number}")


@pytest.fixture
def bench() -> Bench:
    made = Bench(Limits(adapter_bytes=100, plans=3))
    made.services.adapters.replace([fact("a", 1, ""), fact("b", 2, "local"), fact("b", 3, ""), fact("c", 4, "other")])
    made.handlers.scratch.write("mine", base64.b64encode(b"x" * 60).decode(), False)
    return made


def load(bench: Bench, path: str = "mine", alpha: float = 0.0) -> tuple[int, LoadAdapter]:
    ticket = bench.handlers.adapters.load(path, alpha)
    bench.handlers.tickets.flush()
    message = bench.device.posted.pop()
    assert isinstance(message, LoadAdapter)
    return ticket, message


def run_pass(bench: Bench, adapter: int) -> None:
    bench.pages.grant(list(range(8))) if not bench.pages.num_granted else None
    queue, pages = bench.handlers.queues.create(""), bench.handlers.kv.alloc(1)
    handle = bench.handlers.forward.forward(queue, pages, 0, u32(1, 2), NONE, NONE)
    bench.handlers.forward.set_adapter(handle, adapter)


def test_a_tenant_sees_its_own_adapters_and_those_for_all(bench: Bench) -> None:
    assert bench.handlers.adapters.names() == ["a", "b"]
    assert json.loads(bench.handlers.adapters.info("b")) == {
        "name": "b",
        "rank": 8,
        "alpha": 16.0,
        "targets": ["q_proj"],
        "num_bytes": 64,
        "owner": "local",
        "digest": "digest 2",
    }
    for ask in (bench.handlers.adapters.info, bench.handlers.adapters.open):
        with pytest.raises(NotFound, match="'c'; there are: a, b"):
            ask("c")


def test_a_pass_carries_the_number_of_its_adapter(bench: Bench) -> None:
    opened = bench.handlers.adapters.open("b")
    assert bench.handlers.adapters.digest(opened) == "digest 2"
    run_pass(bench, opened)
    run_pass(bench, 0)
    bench.handlers.tickets.flush()
    assert [message.adapter for message in bench.forwards()] == [2, 0]
    for handle in (9, 1 << 31):
        with pytest.raises(BadHandle, match="adapter"):
            run_pass(bench, handle)


def test_a_handle_is_closed_once_and_they_are_limited(bench: Bench) -> None:
    handles = [bench.handlers.adapters.open("a") for _ in range(3)]
    with pytest.raises(QuotaExceeded, match="plans: the limit is 3 adapters open"):
        bench.handlers.adapters.open("a")
    bench.handlers.adapters.close(handles[0])
    with pytest.raises(BadHandle, match="adapter 1 is not open"):
        bench.handlers.adapters.close(handles[0])
    assert bench.handlers.adapters.open("a") == 4


def test_an_adapter_of_the_inferlets_own_is_loaded_used_and_unloaded_in_order(bench: Bench) -> None:
    ticket, message = load(bench)
    assert message == LoadAdapter(NUMBER << 32 | ticket, NUMBER, PRIVATE, "mine", b"x" * 60, 0.0, False, 100)
    bench.answer(Completed(message.ticket, "digest of mine"))
    (handle,) = bench.handlers.tickets.take_tokens(ticket).tolist()
    assert bench.handlers.adapters.digest(handle) == "digest of mine"
    run_pass(bench, handle)
    bench.handlers.adapters.close(handle)
    with pytest.raises(BadHandle):
        bench.handlers.adapters.close(handle)
    bench.handlers.tickets.flush()
    assert [type(m).__name__ for m in bench.device.posted] == ["Forward", "UnloadAdapter"]
    assert [m.adapter for m in bench.device.posted] == [PRIVATE, PRIVATE]
    bench.complete_all()
    assert bench.outbox.num_outstanding == 0


def test_a_load_that_fails_tells_why_and_leaves_nothing(bench: Bench) -> None:
    ticket, message = load(bench)
    bench.answer(Failed(message.ticket, "invalid", "no such tensor"))
    with pytest.raises(InvalidRequest, match="no such tensor"):
        bench.handlers.tickets.take_tokens(ticket)
    assert len(bench.parts.tables.adapters) == 0
    load(bench)  # the bytes of the first count no more


def test_a_load_that_is_forgotten_is_unloaded(bench: Bench) -> None:
    ticket, message = load(bench)
    bench.handlers.tickets.cancel(u32(ticket))
    bench.answer(Completed(message.ticket, None))
    bench.handlers.tickets.flush()
    (unload,) = bench.device.posted
    assert isinstance(unload, UnloadAdapter)
    assert (unload.adapter, len(bench.parts.tables.adapters)) == (PRIVATE, 0)


def test_a_load_whose_handle_has_no_room_is_unloaded(bench: Bench) -> None:
    ticket, message = load(bench)
    for _ in range(3):
        bench.handlers.adapters.open("a")
    bench.answer(Completed(message.ticket, None))
    with pytest.raises(QuotaExceeded, match="plans"):
        bench.handlers.tickets.take_tokens(ticket)
    bench.handlers.tickets.flush()
    assert isinstance(bench.device.posted[0], UnloadAdapter)


def test_bytes_on_their_way_are_limited(bench: Bench) -> None:
    bench.handlers.adapters.load("mine", 0.0)
    with pytest.raises(QuotaExceeded, match="adapter_bytes: the limit is 100; 60 are being loaded, 'mine' has 60 more"):
        bench.handlers.adapters.load("mine", 0.0)


def test_a_lost_device_answers_a_load(bench: Bench) -> None:
    ticket, _ = load(bench)
    bench.outbox.fail_all(DeviceLost("gone"))
    with pytest.raises(DeviceLost):
        bench.handlers.tickets.take_tokens(ticket)


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_alpha_is_finite(bench: Bench, alpha: float) -> None:
    with pytest.raises(InvalidRequest, match="alpha"):
        bench.handlers.adapters.load("mine", alpha)


def test_a_file_must_be_there(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.handlers.adapters.load("other", 0.0)


def write(bench: Bench, path: str, data: bytes) -> None:
    bench.handlers.scratch.write(path, base64.b64encode(data).decode(), False)


def settings(**more: object) -> bytes:
    return json.dumps({"peft_type": "LORA", "lora_alpha": 8, "r": 16, **more}).encode()


@pytest.mark.parametrize("folder", ["", "a/b/"])
def test_a_folder_as_peft_saves_it_is_loaded_as_its_settings_say(bench: Bench, folder: str) -> None:
    write(bench, f"{folder}adapter_model.safetensors", b"y" * 50)
    for config, scaling in ((settings(use_rslora=True), (8.0, True)), (settings(), (8.0, False))):
        write(bench, f"{folder}adapter_config.json", config)
        for path in (f"{folder}adapter_model.safetensors", folder.rstrip("/") or "adapter_model.safetensors"):
            ticket, message = load(bench, path)
            bench.answer(Completed(message.ticket, ""))
            bench.handlers.adapters.close(bench.handlers.tickets.take_tokens(ticket).tolist()[0])
            assert (message.name, message.data) == (f"{folder}adapter_model.safetensors", b"y" * 50)
            assert (message.alpha, message.is_rank_stabilized) == scaling
    _, message = load(bench, f"{folder}adapter_model.safetensors", 3.0)
    assert message.alpha == 3.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (settings(use_dora=True), r"a/adapter_config\.json: use_dora is True; supported: none"),
        (settings(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        (settings(use_everything="yes"), "use_everything is 'yes', and is not known here"),
        (b"[1]", "expected an object, found list"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"\xff", "not readable as JSON"),
    ],
)
def test_settings_that_are_not_computed_are_refused_by_name(bench: Bench, config: bytes, message: str) -> None:
    write(bench, "a/adapter_model.safetensors", b"y")
    write(bench, "a/adapter_config.json", config)
    for path in ("a", "a/adapter_model.safetensors"):
        with pytest.raises(InvalidRequest, match=message):
            bench.handlers.adapters.load(path, 0.0)


def test_a_folder_without_settings_is_not_loaded(bench: Bench) -> None:
    write(bench, "a/adapter_model.safetensors", b"y")
    with pytest.raises(NotFound, match=r"a/adapter_config\.json"):
        bench.handlers.adapters.load("a", 0.0)
    _, message = load(bench, "a/adapter_model.safetensors")
    assert (message.alpha, message.is_rank_stabilized) == (0.0, False)


def test_a_closed_adapter_has_no_digest(bench: Bench) -> None:
    with pytest.raises(BadHandle):
        bench.handlers.adapters.digest(7)
