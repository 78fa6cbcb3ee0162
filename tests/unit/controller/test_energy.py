from __future__ import annotations

import pytest

from benchfleet_controller.energy import Energy, Method, Scope, Window, headline, kwh_per_million_tokens, measured

ROUNDS = Window(seconds=100.0, spans=5, joules=5000.0, readings=1005, moves=1000)
IDLE = Window(seconds=30.0, spans=1, joules=300.0, readings=301, moves=300)
LOADED = Window(seconds=10.0, spans=4, joules=200.0, readings=104, moves=100)
POWER = Method.POWER
LEFT_ALONE_TOO_SHORT = (
    "cpu_package: no idle power with the model loaded: the host was not left alone for a second; use --idle-baseline 10"
)


def made(scope: Scope, gross_j: float | None = 10.0, method: Method = Method.COUNTER, *reasons: str) -> Energy:
    return Energy(scope, method, 1.0, gross_j, None, None, reasons)


def test_gross_and_marginal_energy() -> None:
    found = measured(Scope.GPU_BOARD, ROUNDS, 5, IDLE, LOADED)
    assert (found.gross_j, found.idle_host_w, found.idle_loaded_w) == (5000.0, 10.0, 20.0)
    assert (found.marginal_host_j, found.marginal_loaded_j) == (4000.0, 3000.0)
    assert found.reasons == ()


def test_kwh_for_a_million_tokens() -> None:
    # 350 W at 60 tokens/s
    assert kwh_per_million_tokens(350 / 60) == pytest.approx(1.62, abs=0.01)


@pytest.mark.parametrize(
    ("window", "period_s", "error"),
    [
        (Window(20.0, 1, 1.0, 2001, 2000), 0.01, 0.001),  # every reading was new: at most the time between them
        (Window(20.0, 1, 1.0, 21, 20), 0.1, 0.01),  # read so seldom that only the usual period is known
        (Window(20.0, 1, 1.0, 201, 10), 2.0, 0.2),  # moved every 2 s
        (Window(20.0, 10, 1.0, 210, 200), 0.1, 0.1),
        (Window(20.0, 1, 0.0, 201, 0), 20.0, 2.0),  # never moved
    ],
)
def test_edges_cost_two_periods_a_round(window: Window, period_s: float, error: float) -> None:
    assert window.period_s == pytest.approx(period_s)
    assert window.edge_error_ratio == pytest.approx(error)


@pytest.mark.parametrize(
    ("window", "period_s"),
    [
        (Window(20.0, 1, 1.0, 201, 200, POWER), 0.1),  # another value at each reading
        (Window(3.0, 1, 1.0, 4, 3, POWER), 1.0),  # as above, but nothing is known of the second between two readings
        (Window(3.0, 1, 1.0, 31, 2, POWER), 1.5),  # read often, renewed seldom
        (Window(20.0, 1, 1.0, 201, 0, POWER), 1.0),  # constant, or the slowest gauge there is
        (Window(60.0, 1, 1.0, 61, 0, POWER), 60.0),  # as good as stuck
        (Window(60.0, 1, 1.0, 601, 600, Method.AVERAGED_POWER), 1.0),  # moves all the time, and lags
        (Window(1.0, 1, 1.0, 1, 0, POWER), 1.0),
    ],
)
def test_power_is_renewed_no_faster_than_it_is_read_moves_or_is_averaged(window: Window, period_s: float) -> None:
    assert window.period_s == pytest.approx(period_s)


def test_idle_power_that_hardly_changes_is_known_however_seldom_it_is_renewed() -> None:
    def idle_w(readings: int, spread_w: float) -> float | None:
        window = Window(10.0, 1, 80.0, readings, 2, POWER, spread_w)
        return measured(Scope.GPU_BOARD, ROUNDS, 5, window, None).idle_host_w

    assert idle_w(101, 0.05) == 8.0
    assert idle_w(101, 3.0) is None, "it was still falling"
    assert idle_w(11, 0.05) is None, "read once a second, it may as well be stuck"


def test_a_battery_read_once_a_second_says_nothing_of_a_round_of_three() -> None:
    found = measured(Scope.SYSTEM, Window(9.0, 3, 90.0, 12, 9, POWER), 3, None, None)
    assert found.gross_j is None
    assert "rounds of 3 s are too short for a source that moves every 1 s: ±67%" in found.reasons[0]


def test_rounds_too_short_for_the_counter_are_refused_with_the_length_that_would_do() -> None:
    short = Window(seconds=2.5, spans=5, joules=100.0, readings=30, moves=25)
    found = measured(Scope.GPU_BOARD, short, 5, None, None)
    assert found.gross_j is None
    assert found.marginal_host_j is None
    assert "rounds of 0.5 s are too short for a source that moves every 0.1 s: ±40%" in found.reasons[0]
    assert "--round-duration 2 " in found.reasons[0]


def test_a_missed_round_is_no_smaller_energy() -> None:
    found = measured(Scope.GPU_BOARD, ROUNDS, 6, IDLE, LOADED)
    assert (found.gross_j, found.reasons[0]) == (None, "gpu_board: metered in 5 of 6 rounds")


def test_short_idle_phases_leave_the_marginal_energy_unknown() -> None:
    found = measured(Scope.CPU_PACKAGE, ROUNDS, 5, Window(4.9, 1, 49.0, 50, 49), None)
    assert (found.gross_j, found.idle_host_w, found.marginal_host_j, found.marginal_loaded_j) == (
        5000.0,
        None,
        None,
        None,
    )
    assert found.reasons == (
        "cpu_package: no idle power before the load: 4.9 s are too few (5 s at least); use --idle-baseline 5 or more",
        LEFT_ALONE_TOO_SHORT,
    )


def test_idle_power_in_many_pieces_is_refused_for_its_edges() -> None:
    pieces = Window(seconds=10.0, spans=12, joules=100.0, readings=112, moves=100)
    found = measured(Scope.CPU_PACKAGE, ROUNDS, 5, IDLE, pieces)
    assert (found.idle_host_w, found.idle_loaded_w) == (10.0, None)
    (reason,) = found.reasons
    assert reason == (
        "cpu_package: no idle power with the model loaded: 10.0 s in 12 pieces are too few for a source that moves "
        "every 0.1 s: ±24% at the edges alone; use --idle-baseline 5 or more"
    )


def test_marginal_energy_is_above_the_loaded_host_and_added_up_like_the_gross() -> None:
    board = measured(Scope.GPU_BOARD, ROUNDS, 5, IDLE, LOADED)
    package = measured(Scope.CPU_PACKAGE, Window(100.0, 5, 3000.0, 1005, 1000), 5, IDLE, LOADED)
    found = headline([board, package], dedicated=True, boards=1)
    assert (found.joules, found.marginal_j, found.marginal_reason) == (8000.0, 4000.0, None)
    unknown = measured(Scope.CPU_PACKAGE, ROUNDS, 5, IDLE, None)
    found = headline([board, unknown], dedicated=True, boards=1)
    assert (found.joules, found.marginal_j) == (10000.0, None)
    assert (found.marginal_reason or "").startswith("cpu_package: no idle power with the model loaded")
    idle = measured(Scope.GPU_BOARD, Window(100.0, 5, 2000.0, 1005, 1000), 5, IDLE, LOADED)
    found = headline([idle], dedicated=True, boards=1)
    assert (found.marginal_j, found.marginal_reason) == (None, "the rounds took no more power than the idle host")


def test_processors_and_boards_add_up_and_nothing_else_does() -> None:
    all_three = [made(Scope.GPU_BOARD, 10.0), made(Scope.CPU_PACKAGE, 5.0), made(Scope.SYSTEM, 40.0, Method.POWER)]
    found = headline(all_three, dedicated=True, boards=1)
    assert (found.scope, found.joules, found.method) == (Scope.PARTS, 15.0, "counter")
    mixed = headline([made(Scope.GPU_BOARD, 10.0, Method.POWER), all_three[1]], dedicated=True, boards=1)
    assert mixed.method == "counter+power"


@pytest.mark.parametrize(
    ("energies", "dedicated", "boards", "scope"),
    [
        ([made(Scope.CPU_PACKAGE)], False, 0, Scope.PARTS),  # all there is on a host without boards
        ([made(Scope.CPU_PACKAGE)], False, 1, Scope.CPU_PACKAGE),
        ([made(Scope.GPU_BOARD)], True, 1, Scope.GPU_BOARD),
        ([made(Scope.SYSTEM)], True, 1, Scope.SYSTEM),
        ([made(Scope.SYSTEM), made(Scope.MODULE)], True, 1, Scope.MODULE),
        ([made(Scope.GPU_BOARD), made(Scope.SYSTEM)], False, 1, Scope.SYSTEM),  # the work is not on the board
        ([made(Scope.CPU_PACKAGE), made(Scope.SYSTEM)], True, 1, Scope.SYSTEM),
    ],
)
def test_the_scope_that_holds_the_work_speaks_for_a_case(
    energies: list[Energy], dedicated: bool, boards: int, scope: Scope
) -> None:
    assert headline(energies, dedicated=dedicated, boards=boards).scope is scope


@pytest.mark.parametrize(
    ("energies", "reason"),
    [
        ([], "no probe of this host counts energy or power"),
        ([made(Scope.GPU_BOARD)], "only gpu_board was metered, and the work is done by the processor"),
        ([made(Scope.CPU_PACKAGE, None, Method.COUNTER, "too short", "no idle")], "too short"),
    ],
)
def test_no_energy_has_its_reason(energies: list[Energy], reason: str) -> None:
    found = headline(energies, dedicated=False, boards=1)
    assert (found.scope, found.joules, found.reason) == (None, None, reason)
