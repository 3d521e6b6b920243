"""The programs of single ranks, made from that of all, fit each other and the arrays that move."""

from itertools import product

import numpy as np
import pytest
from random_cases import SMALL, draw

from mpicnn.division.compile import compile_all
from mpicnn.division.operations import (
    EXAMPLES,
    Accumulate,
    Backward,
    Forward,
    Loss,
    Receive,
    Rows,
    Send,
    Start,
    Store,
    Sum,
    Wait,
)
from mpicnn.division.placement import box_shape, local_shape, region
from mpicnn.errors import UserError


def places(grid):
    return list(product(*map(range, grid)))


def rows_of(part):
    return part.stop - (part.start or 0)


def follow(program, coords, image):
    """Check the shapes of a rank's arrays from one operation to the next, as numbers alone."""
    held = {EXAMPLES: (program.positions.size, *image)}
    for weight in program.weights:
        shape = local_shape(weight.param.shape, weight.home, coords)
        held[program.homes[weight.name]] = shape
    for op in program.ops:
        match op:
            case Start(hop=hop):
                rank = coords[hop.axis]
                before, after = (p.box(hop.shape, rank) for p in (hop.move.src, hop.move.dst))
                assert held[op.x] == box_shape(before)
                held[op.y] = box_shape(after)
            case Forward(call=call):
                assert [held[x] for x in op.x] == list(call.x_shapes)
                assert call.positions.size == call.y_shape[0]
                assert call.channels[1] - call.channels[0] == call.y_shape[1]
                held[op.y] = call.y_shape
            case Backward(call=call):
                assert held[op.dy] == call.y_shape
                held |= dict(zip(op.dx, call.x_shapes, strict=True))
                held |= {slot: held[op.use[short]] for short, slot in op.grads.items()}
            case Loss():
                assert held[op.x][0] == op.labels.size
                held[op.dx] = held[op.x]
            case Rows():
                assert 0 <= (op.rows.start or 0) <= op.rows.stop <= held[op.x][0]
                held[op.y] = (rows_of(op.rows), *held[op.x][1:])
            case Store():
                assert held[op.x] == (rows_of(op.rows), *op.shape[1:])
                assert op.rows.stop <= op.shape[0]
                held[op.y] = op.shape
            case Accumulate():
                assert held[op.x] == held[op.to]
                held[op.y] = held[op.x]
            case Send():
                assert held[op.x] == op.shape
            case Receive():
                held[op.y] = op.shape
    for name, slot in program.grads.items():
        (weight,) = (w for w in program.weights if w.name == name)
        assert held[slot] == local_shape(weight.param.shape, weight.home, coords)


def collectives(program, axis, coords):
    """Return what a rank begins with others along an axis, and the lengths of their messages."""
    found = []
    for op in program.ops:
        if isinstance(op, Start) and op.hop.axis == axis:
            found.append((op.name, op.back, op.hop.move, op.hop.shape))
        if isinstance(op, Sum) and axis in op.axes:
            uses = {w.name: local_shape(w.param.shape, w.use, coords) for w in program.weights}
            found.append((op.names, [uses[name] for name in op.names]))
    return found


def check(case, count):
    stages = compile_all(case.model, case.plan, count, SMALL)
    read = []
    for whole in stages:
        programs = {coords: whole.at(coords) for coords in places(whole.grid)}
        for coords, program in programs.items():
            follow(program, coords, case.model.input_shape)
            assert [type(op) for op in program.ops] == [type(op) for op in whole.ops]
            assert {op.y for op in program.ops if isinstance(op, Wait)} == {
                op.y for op in program.ops if isinstance(op, Start | Sum | Send | Receive)
            }
            for axis in range(len(whole.grid)):
                first = (*coords[:axis], 0, *coords[axis + 1 :])
                theirs = collectives(programs[first], axis, first)
                assert collectives(program, axis, coords) == theirs
        for index, weight in enumerate(whole.weights):
            shape = weight.param.shape
            homes = {region(shape, p.weights[index].home, at) for at, p in programs.items()}
            items = np.zeros(shape, int)
            for home in homes:
                items[tuple(slice(*ends) for ends in home)] += 1
            assert (items == 1).all()
        read += [program.positions for program in programs.values()]
    answers = [stages[-1].at(coords).answers for coords in places(stages[-1].grid)]
    np.testing.assert_array_equal(np.sort(np.concatenate(answers)), np.arange(count))
    assert set(np.concatenate(read)) <= set(range(count))


@pytest.mark.parametrize("graph", [False, True], ids=["chain", "graph"])
def test_ranks_programs_fit_each_other(graph):
    checked = 0
    for seed in range(120):
        case = draw(seed, graph)
        for count in case.batches:
            try:
                check(case, count)
                checked += 1
            except UserError:
                continue
    assert checked > 120
