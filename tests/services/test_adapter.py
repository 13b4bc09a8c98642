"""The adapter's files: the same weights are the same bytes, and nothing but the right bytes is read."""

import json
import pickle
from collections.abc import Callable, Mapping

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from services.adapter import (
    Adapter,
    Layout,
    Projection,
    TrainingState,
    decode,
    decode_state,
    encode,
    file_refs,
    new_adapter,
)
from services.base_model import BaseModel
from services.errors import RefusedError
from services.manifest import ADAPTER_FILE, STATE_FILE, TOKENS_FILE, BaseRef, Concept, Content, sha256
from tests.bases import reference, some_adapter

LAYOUT = Layout((Projection("mid.attn2.to_k", 6), Projection("mid.attn2.to_v", 4)), text_width=8)
A = "unet.mid.attn2.to_k.lora_A.weight"
B = "unet.mid.attn2.to_v.lora_B.weight"
ADAPTER = some_adapter(LAYOUT, {"mug": 1, "fox": 2}, rank=3, alpha=1.5)
FISHER = TrainingState(ADAPTER.down_PRD.square(), ADAPTER.up_KR.square())
FILES = encode(ADAPTER, FISHER, LAYOUT)


def content_of(files: Mapping[str, bytes]) -> Content:
    return Content(
        lineage="ann",
        base=BaseRef(id="embedded", revision=sha256(b"")),
        rank=3,
        alpha=1.5,
        concepts=(Concept(name="mug", noun="mug"), Concept(name="fox", noun="fox", vectors=2)),
        files=file_refs(files),
    )


def read(name: str, data: bytes) -> None:
    """Read a version one of whose files holds `data`, and whose manifest says so."""
    files = FILES | {name: data}
    if name == STATE_FILE:
        decode_state(content_of(files), LAYOUT, data)
    else:
        decode(content_of(files), LAYOUT, files)


def with_tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> bytes:
    tensors = load(FILES[name])
    change(tensors)
    return bytes(save(tensors))


def test_what_is_encoded_is_decoded_bit_by_bit() -> None:
    found = decode(content_of(FILES), LAYOUT, FILES)
    assert torch.equal(found.down_PRD, ADAPTER.down_PRD)
    assert torch.equal(found.up_KR, ADAPTER.up_KR)
    assert (found.alpha, found.rank, found.scale) == (1.5, 3, 0.5)
    assert list(found.tokens) == ["mug", "fox"]
    assert all(torch.equal(found.tokens[name], ADAPTER.tokens[name]) for name in ADAPTER.tokens)
    state = decode_state(content_of(FILES), LAYOUT, FILES[STATE_FILE])
    assert torch.equal(state.down_PRD, FISHER.down_PRD)
    assert torch.equal(state.up_KR, FISHER.up_KR)


def test_the_same_weights_are_the_same_bytes() -> None:
    turned = Adapter(
        ADAPTER.down_PRD.clone(), ADAPTER.up_KR.clone(), 1.5, {name: ADAPTER.tokens[name] for name in ("fox", "mug")}
    )
    assert encode(turned, FISHER, LAYOUT) == FILES
    other = Adapter(ADAPTER.down_PRD, ADAPTER.up_KR + 1e-7, 1.5, ADAPTER.tokens)
    assert encode(other, FISHER, LAYOUT)[ADAPTER_FILE] != FILES[ADAPTER_FILE]


def test_a_layer_finds_its_own_rows_under_the_names_of_diffusers() -> None:
    tensors = load(FILES[ADAPTER_FILE])
    assert sorted(tensors) == sorted(
        f"unet.mid.attn2.{part}.lora_{factor}.weight" for part in ("to_k", "to_v") for factor in "AB"
    )
    assert torch.equal(tensors[A], ADAPTER.down_PRD[0])
    assert torch.equal(tensors[B], ADAPTER.up_KR[6:])


def test_diffusers_loads_every_key(any_base: BaseModel) -> None:
    adapter = some_adapter(any_base.layout, {"mug": 1})
    layers = dict(reference(any_base, adapter).unet.named_modules())
    for index, projection in enumerate(any_base.layout.projections):
        layer = layers[projection.name]
        assert torch.equal(layer.lora_A["default_0"].weight, adapter.down_PRD[index])
        assert torch.equal(layer.lora_B["default_0"].weight, adapter.up_KR.split(any_base.layout.widths)[index])
    loaded = [name for name in layers if name.endswith("lora_A.default_0")]
    assert len(loaded) == len(any_base.layout.projections)


def test_a_new_adapter_changes_nothing_and_has_the_rank_as_alpha() -> None:
    fresh = new_adapter(LAYOUT, rank=2, seed=1)
    assert not fresh.up_KR.any()
    assert 0 < fresh.down_PRD.abs().max() <= 8**-0.5
    assert (fresh.alpha, fresh.scale, fresh.tokens) == (2.0, 1.0, {})
    assert not torch.equal(fresh.down_PRD, new_adapter(LAYOUT, rank=2, seed=2).down_PRD)


def test_all_of_it_moves_to_another_device() -> None:
    meta = torch.device("meta")
    adapter, state = ADAPTER.to(meta), FISHER.to(meta)
    tensors = [adapter.down_PRD, adapter.up_KR, *adapter.tokens.values(), state.down_PRD, state.up_KR]
    assert {tensor.device for tensor in tensors} == {meta}


def test_it_knows_its_size_in_memory() -> None:
    assert ADAPTER.bytes() == 4 * (2 * 3 * 8 + 10 * 3 + 3 * 8)


@pytest.mark.parametrize("name", [ADAPTER_FILE, TOKENS_FILE])
def test_a_file_that_is_not_the_manifests_is_refused(name: str) -> None:
    data = bytearray(FILES[name])
    data[-1] ^= 1
    for spoiled in (bytes(data), FILES[name] + b"\0", FILES[name][:-1], b""):
        with pytest.raises(RefusedError, match=f"{name} is damaged"):
            decode(content_of(FILES), LAYOUT, FILES | {name: spoiled})


def test_a_fisher_information_that_is_not_the_manifests_is_refused() -> None:
    with pytest.raises(RefusedError, match="is damaged"):
        decode_state(content_of(FILES), LAYOUT, FILES[STATE_FILE] + b"\0")


@pytest.mark.parametrize("name", [ADAPTER_FILE, TOKENS_FILE])
def test_a_missing_file_is_refused(name: str) -> None:
    rest = {other: data for other, data in FILES.items() if other != name}
    for content, files in ((content_of(FILES), rest), (content_of(rest), FILES)):
        with pytest.raises(RefusedError, match=f"{name} is missing"):
            decode(content, LAYOUT, files)


def test_missing_and_unknown_tensors_are_counted() -> None:
    cases: dict[bytes, str] = {
        with_tensors(ADAPTER_FILE, lambda tensors: tensors.pop(A)): "1 tensors missing, 0 unknown",
        with_tensors(ADAPTER_FILE, lambda tensors: tensors.update(x=torch.ones(1))): "0 tensors missing, 1 unknown",
        save({}): "4 tensors missing, 0 unknown",
    }
    for data, counted in cases.items():
        with pytest.raises(RefusedError, match=counted):
            read(ADAPTER_FILE, data)
    with pytest.raises(RefusedError, match=r"tokens.safetensors does not fit"):
        read(TOKENS_FILE, save({"mug": ADAPTER.tokens["mug"]}))


@pytest.mark.parametrize("spoiled", [torch.zeros(3, 8).half(), torch.zeros(3, 9), torch.zeros(2, 8), torch.zeros(24)])
def test_another_type_shape_or_rank_is_refused(spoiled: Tensor) -> None:
    with pytest.raises(RefusedError, match=r"lora_A.weight is .*, expected float32 \(3, 8\)"):
        read(ADAPTER_FILE, with_tensors(ADAPTER_FILE, lambda tensors: tensors.update({A: spoiled})))


def test_another_number_of_token_vectors_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"fox is .*, expected float32 \(2, 8\)"):
        read(TOKENS_FILE, with_tensors(TOKENS_FILE, lambda tensors: tensors.update(fox=torch.zeros(1, 8))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "key"), [(ADAPTER_FILE, B), (TOKENS_FILE, "fox"), (STATE_FILE, A)])
def test_numbers_that_are_not_finite_are_refused(name: str, key: str, value: float) -> None:
    with pytest.raises(RefusedError, match="not finite"):
        read(name, with_tensors(name, lambda tensors: tensors[key][0, 0].fill_(value)))


def test_negative_fisher_information_is_refused() -> None:
    with pytest.raises(RefusedError, match="cannot be negative"):
        read(STATE_FILE, with_tensors(STATE_FILE, lambda tensors: tensors[B][0, 0].fill_(-1e-9)))


def header(text: bytes, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE = {
    "empty": b"",
    "text": b"not a tensor file at all",
    "pickle": pickle.dumps({"a": [1]}),
    "torch zip": b"PK\x03\x04" + bytes(60),
    "no json": header(b"\xff" * 16),
    "no object": header(b"[1, 2]"),
    "huge header": header(b"{}", size=2**63),
    "header longer than the file": header(b"{}", size=10_000),
    "unknown type": header(json.dumps({"a": ENTRY | {"dtype": "X99"}}).encode()) + bytes(4),
    "type that torch lacks": header(json.dumps({"a": ENTRY | {"dtype": "F8_E8M0", "data_offsets": [0, 1]}}).encode())
    + bytes(1),
    "offsets outside": header(json.dumps({"a": ENTRY | {"data_offsets": [0, 400]}}).encode()) + bytes(4),
    "offsets backwards": header(json.dumps({"a": ENTRY | {"data_offsets": [4, 0]}}).encode()) + bytes(4),
    "overflowing shape": header(json.dumps({"a": ENTRY | {"shape": [2**40, 2**40]}}).encode()) + bytes(4),
    "negative shape": header(json.dumps({"a": ENTRY | {"shape": [-1]}}).encode()) + bytes(4),
    "cut off": FILES[ADAPTER_FILE][:-7],
    "more behind": FILES[ADAPTER_FILE] + b"more",
}


@pytest.mark.parametrize("name", [ADAPTER_FILE, TOKENS_FILE, STATE_FILE])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused_even_under_a_right_digest(case: str, name: str) -> None:
    with pytest.raises(RefusedError, match=name):
        read(name, HOSTILE[case])


def test_no_single_changed_byte_of_a_header_escapes_as_another_error() -> None:
    data = FILES[TOKENS_FILE]
    for position in range(len(data) - ADAPTER.tokens["mug"].nbytes * 3):
        for change in (0x01, 0x80):
            spoiled = bytearray(data)
            spoiled[position] ^= change
            try:
                read(TOKENS_FILE, bytes(spoiled))
            except RefusedError:
                continue
