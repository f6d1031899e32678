"""Random tensor programs give what numpy gives, and a row's bits do not depend on the rows beside it."""

from __future__ import annotations

import base64
import json
import random

import numpy as np
import pytest
import torch
from rounds import seeds
from tensor_reference import PLAIN, REDUCED, interpret

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.models.tensor_programs import Compiled, Given
from pieray.tensor.ops import OPS
from pieray.tensor.program import OP_WORK, Bounds, Program, parse
from pieray.tensor.types import BOOL, FLOAT, INT, Sizes

SIZES = Sizes(vocab=37, hidden=8, num_heads=4, head_dim=8, num_layers=3, max_pages=9)
NAMED = {"V": 37, "H": 8, "A": 4, "D": 8, "P": 5}
BOUNDS = Bounds(200, 1 << 20, 10_000_000)
WILD = {"exp", "log", "pow", "div", "sqrt", "mod", "int", "logsumexp", "argmax", "argmin", "argsort", "rank", "floor"}
"""What they give jumps where the last bits of numpy and torch differ: random programs have none of them."""


def const(rng: random.Random, shape: list[int], dtype: str) -> list[object]:
    count = int(np.prod(shape, dtype=int))
    values = [rng.randint(-5, 5) if dtype == INT else rng.uniform(-2, 2) for _ in range(count)]
    data = np.array(values, "<i4" if dtype == INT else "<f4").tobytes()
    return ["const", shape, dtype, base64.b64encode(data).decode()]


def random_ops(rng: random.Random, count: int) -> list[list[object]]:
    """Operations that pass the check, found by trying."""
    ops: list[list[object]] = [["input", "logits"], ["input", "position"], ["iota", "V"], const(rng, [37], FLOAT)]
    ops += [const(rng, [], FLOAT), const(rng, [3], INT), const(rng, [37, 6], FLOAT), const(rng, [], INT)]
    names = sorted(OPS.keys() - WILD - {"const", "iota"})
    while len(ops) < count:
        name = rng.choice(names)
        known = OPS[name]
        operands = [rng.randrange(len(ops)) for _ in range(known.num_operands)]
        if name == "slice":
            attributes: list[object] = [rng.randrange(3), rng.randrange(3, 6)]
        elif name in REDUCED:
            attributes = [rng.choice([-1, -2, 0]), rng.random() < 0.5]
        elif known.num_attributes:
            attributes = [rng.random() < 0.5 if name in ("sort",) else rng.choice([0, -1, 1])]
        else:
            attributes = []
        tried = [*ops, [name, *operands, *attributes]]
        try:
            checked(tried)
        except Exception:
            continue
        ops = tried
    return ops


def checked(ops: list[list[object]]) -> Program:
    """Everything that is a vector of the vocabulary may be a result; the first input always is."""
    return parse(json.dumps({"stage": "logits", "ops": ops, "result": 0}), SIZES, BOUNDS)


def values_of(ops: list[list[object]], rows: list[np.ndarray], number: int) -> np.ndarray:
    """Operation `number` for all rows, as the engine computes them together."""
    code = json.dumps({"stage": "logits", "ops": ops, "result": 0})
    program = parse(code, SIZES, BOUNDS)
    compiled = Compiled(program)
    object.__setattr__(program, "result", number)
    compiled = Compiled(program)
    inputs = {"logits": torch.from_numpy(np.stack(rows)), "position": torch.arange(len(rows)) + 3}
    found, _ = compiled.result(Given(inputs, ()))
    assert found is not None
    return found.numpy()


@pytest.mark.parametrize("seed", seeds(40))
def test_random_programs_give_what_numpy_gives(seed: int) -> None:
    rng = random.Random(seed)
    ops = random_ops(rng, 24)
    rows = [np.random.default_rng([seed, row]).normal(0, 3, 37).astype(np.float32) for row in range(4)]
    program = checked(ops)
    for number in range(len(ops)):
        together = values_of(ops, rows, number)
        for row, values in enumerate(rows):
            code = json.dumps({"ops": ops, "result": number})
            wanted, _ = interpret(code, NAMED, {"logits": values, "position": np.int64(row + 3)})
            assert together[row].shape == np.shape(wanted), ops[number]
            assert (together[row].dtype == bool) == (program.steps[number].type.dtype == BOOL)
            np.testing.assert_allclose(together[row], wanted, rtol=2e-4, atol=2e-4, err_msg=str(ops[number]))


@pytest.mark.parametrize("size", [37, 50_000])
@pytest.mark.parametrize("name", sorted(OPS.keys() - {"const", "iota", "unsqueeze", "squeeze", "slice"}))
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(name: str, size: int) -> None:
    sizes = Sizes(vocab=size, hidden=8, num_heads=4, head_dim=8, num_layers=3, max_pages=9)
    rng = random.Random(size)
    known = OPS[name]
    kinds = {"not": [BOOL], "any": [BOOL], "all": [BOOL], "and": [BOOL] * 2, "or": [BOOL] * 2}
    kinds |= {"where": [BOOL, "x", "y"], "take": ["x", INT], "scatter_add": ["x", INT, "part"], "matmul": ["x", "wide"]}
    ops: list[list[object]] = [["input", "logits"], const(rng, [size], FLOAT), ["gt", 0, 1], const(rng, [7], INT)]
    ops += [const(rng, [7], FLOAT), const(rng, [size, 3], FLOAT)]
    place = {"x": 0, "y": 1, BOOL: 2, INT: 3, "part": 4, "wide": 5}
    operands = [place[kind] for kind in kinds.get(name, ["x", "y"][: known.num_operands])]
    attributes = [-1, False] if known.num_attributes == 2 else [True] * known.num_attributes
    ops.append([name, *operands, *attributes])
    program = parse(json.dumps({"stage": "logits", "ops": ops, "result": 0}), sizes, Bounds(200, 1 << 24, 1 << 30))
    object.__setattr__(program, "result", len(ops) - 1)
    compiled = Compiled(program)
    logits = torch.from_numpy(np.random.default_rng(size).normal(0, 3, (5, size)).astype(np.float32))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            crowd, _ = compiled.result(Given({"logits": logits}, ()))
            assert crowd is not None
            for row in (0, 4):
                alone, _ = compiled.result(Given({"logits": logits[row : row + 1]}, ()))
                assert alone is not None
                np.testing.assert_array_equal(alone[0].numpy(), crowd[row].numpy(), err_msg=f"{name}, {count} threads")
    finally:
        torch.set_num_threads(threads)


def one(name: str, values: list[float], *attributes: object, others: list[list[object]] = ()) -> np.ndarray:  # type: ignore[assignment]
    """An operation on the logits and other operands."""
    ops = [["input", "logits"], *others]
    ops.append([name, *range(len(ops)), *attributes])
    row = np.array([*values, *[0.0] * (37 - len(values))], np.float32)
    return values_of(ops, [row], len(ops) - 1)[0]


def test_what_has_no_value_harms_nobody() -> None:
    """Indices out of range, division by zero, whole numbers of NaN and infinity."""
    nan, inf = float("nan"), float("inf")
    assert one("int", [nan, inf, -inf, 2.7, -2.7]).tolist()[:5] == [0, 1 << 53, -(1 << 53), 2, -2]
    rng = random.Random(1)
    far = ["const", [3], INT, base64.b64encode(np.array([-9, 2, 99], "<i4").tobytes()).decode()]
    assert one("take", [1.0, 2.0, 3.0], others=[far]).tolist() == [1.0, 3.0, 0.0]
    tens = ["const", [3], FLOAT, base64.b64encode(np.array([10, 20, 40], "<f4").tobytes()).decode()]
    added = one("scatter_add", [1.0, 2.0, 3.0], others=[far, tens]).tolist()
    assert (added[0], added[2], added[36]) == (11.0, 23.0, 40.0)
    zero, seven = const(rng, [], INT), ["const", [], INT, base64.b64encode(np.array(7, "<i4").tobytes()).decode()]
    zero[3] = base64.b64encode(bytes(4)).decode()
    row = [np.zeros(37, np.float32)]
    assert values_of([["input", "logits"], seven, zero, ["mod", 1, 2]], row, 3)[0] == 0
    assert values_of([["input", "logits"], seven, zero, ["div", 1, 2]], row, 3)[0] == inf


def test_powers() -> None:
    exponent = ["const", [5], FLOAT, base64.b64encode(np.array([2, 0.5, -1, 3, 0], "<f4").tobytes()).decode()]
    row = np.array([-3.0, -2.0, 4.0, -2.0, 0.0, *[0.0] * 32], np.float32)
    found = values_of([["input", "logits"], exponent, ["slice", 0, 0, 5], ["pow", 2, 1]], [row], 3)[0]
    np.testing.assert_allclose(found, [9.0, np.nan, 0.25, -8.0, 1.0], rtol=1e-6)


def test_order_is_stable() -> None:
    values = [3.0, 5.0, 3.0, 5.0, 9.0]
    assert one("argsort", values, True).tolist()[:5] == [4, 1, 3, 0, 2]
    assert one("rank", values, True).tolist()[:5] == [3, 1, 4, 2, 0]
    assert one("sort", values, True).tolist()[:5] == [9.0, 5.0, 5.0, 3.0, 3.0]
    assert one("argmax", [1.0, 7.0, 7.0], -1, False) == 1
    assert set(PLAIN) | set(REDUCED) <= set(OPS), "the reference knows no more than the engine"


PROGRAM = {"stage": "logits", "ops": [["input", "logits"]], "result": 0}
REFUSED = {
    "pages where there are none": ({"ops": [["input", "logits"], ["iota", "P"]]}, "P is a size of stages pages"),
    "a state over them": ({"states": [[["P"], None]], "updates": [0]}, "P is a size of stages pages"),
    "a size of a hundred digits": ({"ops": [["iota", 10**100]]}, "up to 2147483647; given 1000"),
    "sizes whose product has more digits than Python writes": (
        {"states": [[[10**3000] * 2, None]]},
        "up to 2147483647",
    ),
    "a shape of many axes": ({"states": [[[1] * 100, None]]}, "at most 3 axes; given 100"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_stage_can_compute_is_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(InvalidRequest, match=message) as found:
        parse(json.dumps(PROGRAM | change), SIZES, BOUNDS)
    assert len(found.value.message) < 200


def test_code_of_many_values_is_refused_before_it_is_read() -> None:
    for more in ('"layers": [' + "0," * 100_000 + "0]", '"states": ' + "[" * 90_000 + "]" * 90_000):
        code = json.dumps(PROGRAM)[:-1] + ", " + more + "}"
        with pytest.raises(QuotaExceeded, match="program_ops: the limit is 200; their code has at most"):
            parse(code, SIZES, Bounds(200, 1 << 22, 10_000_000))


def test_work_is_that_of_all_layers_of_each_operation_and_of_states() -> None:
    def work(**change: object) -> int:
        return parse(json.dumps(PROGRAM | change), SIZES, BOUNDS).work

    inside: dict[str, object] = {"stage": "hidden", "ops": [["input", "hidden"], ["neg", 0]], "result": 1}
    assert work(**inside) == SIZES.num_layers * work(**inside, layers=[1])
    assert work(ops=[["input", "logits"], *[["iota", 1]] * 100]) > 100 * OP_WORK
    states: dict[str, object] = {"ops": [["input", "logits"], ["state", 0]], "states": [[[50_000], None]]}
    assert work(**states, updates=[1]) >= work() + 4 * 50_000
    with pytest.raises(QuotaExceeded, match=r"program_work: the limit is \d+ operations for a row; .* in 3 layers"):
        parse(json.dumps(PROGRAM | inside), SIZES, Bounds(200, 1 << 20, 2 * OP_WORK))
