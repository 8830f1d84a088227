"""The simulated network shows each fault as the real one does, and the same run for the same seed."""

import itertools
import random

import pytest

from chaos.network import (
    CONNECT_TIMEOUT_S,
    HELLO_TIMEOUT_S,
    KEEPALIVE_S,
    Constant,
    EventLog,
    Host,
    Lognormal,
    Network,
    Path,
    Process,
    Scheduler,
    Uniform,
)

LATENCY_S = 0.001


class Recorder(Process):
    """Keeps what it is told, with the time; answers pings and streams."""

    def __init__(self, network: Network, host: Host) -> None:
        self.network = network
        self.host = host
        self.told: list[tuple] = []

    def note(self, *what):
        self.told.append((round(self.network.scheduler.now_s, 6), *what))

    def datagram_received(self, source, data):
        self.note("datagram", source, data)
        if data == b"ping":
            self.network.send(self.host, source, b"ack")

    def stream_received(self, stream, data):
        self.note("question", data)
        if data != b"ignored":
            self.network.reply(stream, data.upper())

    def stream_replied(self, stream_id, data):
        self.note("answer", stream_id, data)

    def stream_failed(self, stream_id, reason):
        self.note("no answer", stream_id, reason)

    def connected(self, peer):
        self.note("connected", peer)

    def connect_failed(self, peer, reason):
        self.note("connect failed", peer, reason)

    def disconnected(self, peer, *, goodbye, reason):
        self.note("disconnected", peer, goodbye, reason)

    def frame_received(self, source, data):
        self.note("frame", source, data)

    def timer_fired(self):
        self.note("timer")

    def resumed(self, paused_s):
        self.note("resumed", paused_s)


class World:
    """Two or more hosts with recorders, and one latency."""

    def __init__(self, count: int = 2, path: Path | None = None, seed: int = 1) -> None:
        self.scheduler = Scheduler()
        self.log = EventLog(self.scheduler, keep=True)
        self.network = Network(self.scheduler, seed, path=path or Path(Constant(LATENCY_S)), log=self.log)
        self.hosts = [self.network.add(f"h{number}") for number in range(count)]
        self.processes = [self.start(host) for host in self.hosts]

    def start(self, host: Host) -> Recorder:
        process = Recorder(self.network, host)
        self.network.run(host, process)
        return process

    def run(self, for_s: float) -> None:
        self.scheduler.run_until(self.scheduler.now_s + for_s)

    def told(self, number: int = 0) -> list[tuple]:
        """What a process was told since the last time, without the times."""
        told = [item[1:] for item in self.processes[number].told]
        self.processes[number].told.clear()
        return told


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def connected() -> World:
    """Host 0 holds a connection to host 1."""
    world = World()
    world.network.connect(world.hosts[0], "h1")
    world.run(1)
    assert world.told() == [("connected", "h1")]
    return world


# --- time -------------------------------------------------------------------------------------------


def test_what_happens_at_one_instant_happens_in_the_order_of_asking():
    scheduler, done = Scheduler(), []
    for number in range(5):
        scheduler.at(1.0, done.append, number)
    scheduler.at(0.5, done.append, "before")
    scheduler.run_until(2.0)
    assert done == ["before", 0, 1, 2, 3, 4]
    assert scheduler.now_s == 2.0


def test_a_run_that_is_stopped_stays_at_the_present_time():
    scheduler = Scheduler()
    scheduler.at(1.0, scheduler.stop)
    scheduler.run_until(5.0)
    assert scheduler.now_s == 1.0


# --- datagrams --------------------------------------------------------------------------------------


def test_a_datagram_and_its_answer_take_one_latency_each(world):
    world.network.send(world.hosts[0], "h1", b"ping")
    world.run(1)
    assert world.processes[1].told == [(0.001, "datagram", "h0", b"ping")]
    assert world.processes[0].told == [(0.002, "datagram", "h1", b"ack")]


def count_received(path: Path, count: int = 10_000) -> World:
    world = World(path=path)
    for number in range(count):
        world.network.send(world.hosts[0], "h1", b"%d" % number)
    world.run(60)
    return world


@pytest.mark.parametrize(("path", "low", "high"), [
    (Path(loss=0.05), 9400, 9600), (Path(duplicate=0.05), 10400, 10600), (Path(reorder=0.5), 10000, 10000),
])  # fmt: skip
def test_loss_and_duplication_hit_their_share(path, low, high):
    world = count_received(path)
    assert low <= world.hosts[1].packets_received <= high
    assert world.hosts[0].packets_sent == 10_000


def test_reordered_packets_are_overtaken_and_others_are_not():
    world = count_received(Path(Constant(LATENCY_S), reorder=0.1), 1000)
    order = [int(item[3]) for item in world.processes[1].told]
    late = [number for number, after in itertools.pairwise(order) if number > after]
    assert sorted(order) == list(range(1000))
    assert 50 <= len(late) <= 150


@pytest.mark.parametrize(("latency", "median_s", "p99_s"), [
    (Constant(0.01), 0.01, 0.01), (Uniform(0.0, 0.02), 0.01, 0.0198), (Lognormal(0.01, 0.5), 0.01, 0.032),
    (Lognormal(0.009, 1.0, floor_s=0.001), 0.01, 0.0932),
])  # fmt: skip
def test_latencies_follow_their_distribution(latency, median_s, p99_s):
    draw = latency.sampler(random.Random(1))
    drawn = sorted(draw() for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(median_s, rel=0.05)
    assert drawn[19_800] == pytest.approx(p99_s, rel=0.1)


def test_a_pair_may_have_a_path_of_its_own_and_one_way_only():
    world = World()
    world.network.set_path(Path(Constant(0.5)), world.hosts[0], world.hosts[1])
    world.network.send(world.hosts[0], "h1", b"ping")
    world.run(1)
    assert world.processes[1].told == [(0.5, "datagram", "h0", b"ping")]
    assert world.processes[0].told == [(0.501, "datagram", "h1", b"ack")]


def test_a_one_way_block_lets_the_other_way_pass(world):
    world.network.block(world.hosts[0], world.hosts[1])
    world.network.send(world.hosts[0], "h1", b"unheard")
    world.network.send(world.hosts[1], "h0", b"heard")
    world.run(1)
    assert world.told(1) == []
    assert world.told(0) == [("datagram", "h1", b"heard")]
    world.network.unblock(world.hosts[0], world.hosts[1])
    world.network.send(world.hosts[0], "h1", b"heard again")
    world.run(1)
    assert world.told(1) == [("datagram", "h0", b"heard again")]


def test_a_partition_cuts_named_groups_from_each_other_and_from_the_rest():
    world = World(5)
    hosts = world.hosts
    world.network.partition([hosts[0:2], hosts[2:3]])

    def reached() -> list[str]:
        for source in hosts:
            for target in hosts:
                world.network.send(source, target.name, b"x")
        world.run(1)
        return ["".join(item[1][1] for item in world.told(number)) for number in range(5)]

    assert reached() == ["01", "01", "2", "34", "34"]
    world.network.heal()
    assert reached() == ["01234"] * 5


# --- slow and stopped processes -----------------------------------------------------------------------


def test_a_starved_process_reads_late_and_in_order_while_its_timers_are_on_time(world):
    world.network.starve(world.hosts[1])
    for number in range(20):
        world.scheduler.at(number * 0.1, world.network.send, world.hosts[0], "h1", b"%d" % number)
    world.network.arm(world.hosts[1], 0.25)
    world.run(10)
    told = world.processes[1].told
    assert told[0] == (0.25, "timer")
    assert [int(item[3]) for item in told[1:]] == list(range(20))
    delays_s = [item[0] - int(item[3]) * 0.1 - LATENCY_S for item in told[1:]]
    assert min(delays_s) >= 0.5
    assert max(delays_s) <= 2.5
    assert len({round(delay_s, 2) for delay_s in delays_s}) > 5


def test_a_process_that_starves_no_more_reads_everything_at_once(world):
    world.network.starve(world.hosts[1])
    world.network.send(world.hosts[0], "h1", b"x")
    world.run(0.01)
    world.network.starve(world.hosts[1], None)
    assert world.told(1) == [("datagram", "h0", b"x")]


def test_a_resumed_process_reads_what_waits_before_its_timers_fire(world):
    world.network.pause(world.hosts[1], 3.0)
    world.network.arm(world.hosts[1], 0.5)
    world.network.arm(world.hosts[1], 0.4)
    world.network.open_stream(world.hosts[1], "nobody", 7, b"?", 1.0)
    world.scheduler.at(1.0, world.network.send, world.hosts[0], "h1", b"first")
    world.scheduler.at(2.0, world.network.send, world.hosts[0], "h1", b"second")
    world.run(2.9)
    assert world.told(1) == []
    world.run(1)
    assert world.told(1) == [
        ("datagram", "h0", b"first"), ("datagram", "h0", b"second"), ("resumed", 3.0),
        ("no answer", 7, "timed out"), ("timer",),
    ]  # fmt: skip


def test_a_process_that_does_not_read_loses_what_its_receive_buffer_does_not_hold(world):
    world.network.pause(world.hosts[1], 3.0)
    for _ in range(1000):
        world.network.send(world.hosts[0], "h1", b"x" * 100)
    world.run(4)
    assert world.hosts[1].packets_received == world.network.receive_buffer_bytes // 868
    assert world.hosts[1].dropped_full == 1000 - world.hosts[1].packets_received


def test_what_a_process_did_not_read_goes_with_it(world):
    world.network.pause(world.hosts[1], 3.0)
    world.network.send(world.hosts[0], "h1", b"x")
    world.run(1)
    world.network.crash(world.hosts[1])
    world.processes[1] = world.start(world.hosts[1])
    world.run(5)
    assert world.told(1) == []


# --- streams ----------------------------------------------------------------------------------------


def test_a_stream_is_answered_after_two_round_trips(world):
    world.network.open_stream(world.hosts[0], "h1", 5, b"state", 1.0)
    world.run(5)
    assert world.processes[0].told == [(0.004, "answer", 5, b"STATE")]
    assert not world.hosts[0].streams
    assert not world.hosts[1].streams


def test_a_stream_to_an_ended_process_is_refused_and_one_to_a_silent_host_times_out():
    world = World(3)
    world.network.crash(world.hosts[1])
    world.network.crash(world.hosts[2], "silent")
    for number in (1, 2):
        world.network.open_stream(world.hosts[0], f"h{number}", number, b"x", 1.0)
    world.run(5)
    assert world.processes[0].told == [(0.002, "no answer", 1, "refused"), (1.0, "no answer", 2, "timed out")]


def test_a_stream_to_a_paused_process_is_accepted_and_answered_when_it_runs_again(world):
    world.network.pause(world.hosts[1], 2.0)
    world.network.open_stream(world.hosts[0], "h1", 1, b"late", 1.0)
    world.network.open_stream(world.hosts[0], "h1", 2, b"patient", 5.0)
    world.run(5)
    assert world.processes[0].told == [(1.0, "no answer", 1, "timed out"), (2.001, "answer", 2, b"PATIENT")]


def test_a_stream_whose_other_side_ends_fails_at_once(world):
    world.network.open_stream(world.hosts[0], "h1", 1, b"ignored", 10.0)
    world.run(1)
    world.network.crash(world.hosts[1])
    world.run(1)
    assert world.told() == [("no answer", 1, "ended")]


def test_loss_makes_a_stream_late_and_not_fail():
    world = World(path=Path(Constant(LATENCY_S), loss=0.3))
    for number in range(200):
        world.network.open_stream(world.hosts[0], "h1", number, b"x", 60.0)
    world.run(61)
    told = world.processes[0].told
    assert {item[1] for item in told} == {"answer"}
    assert sum(item[0] > 0.19 for item in told) > 100


def test_a_cut_network_lets_a_stream_hang_and_go_on_when_it_heals(world):
    world.network.partition([world.hosts[:1]])
    world.network.open_stream(world.hosts[0], "h1", 1, b"x", 10.0)
    world.run(2.5)
    assert world.told() == []
    world.network.heal()
    world.run(5)
    assert world.told() == [("answer", 1, b"X")]


# --- kept connections --------------------------------------------------------------------------------


def test_frames_arrive_in_order_even_where_packets_are_lost():
    world = World(path=Path(Uniform(0.001, 0.05), loss=0.1))
    world.network.connect_at_once(*world.hosts)
    for number in range(200):
        assert world.network.send_frame(world.hosts[0], "h1", b"%d" % number)
    world.run(60)
    assert [int(item[2]) for item in world.told(1)] == list(range(200))


def test_nothing_is_sent_over_a_connection_that_is_not_up(world):
    assert not world.network.send_frame(world.hosts[0], "h1", b"x")
    world.network.connect(world.hosts[0], "h1")
    assert not world.network.send_frame(world.hosts[0], "h1", b"x")


def test_an_ended_process_is_read_at_once_and_refuses_from_then_on(connected):
    connected.network.crash(connected.hosts[1])
    connected.run(LATENCY_S)
    assert connected.told() == [("disconnected", "h1", False, "ended")]
    for _ in range(3):
        connected.network.connect(connected.hosts[0], "h1")
        connected.run(1)
        assert connected.told() == [("connect failed", "h1", "refused")]
    connected.processes[1] = connected.start(connected.hosts[1])
    connected.network.connect(connected.hosts[0], "h1")
    connected.run(1)
    assert connected.told() == [("connected", "h1")]


def test_an_ended_container_refuses_for_a_moment_and_is_silent_then(connected):
    connected.network.crash(connected.hosts[1], "container")
    connected.run(0.01)
    connected.network.connect(connected.hosts[0], "h1")
    connected.run(0.3)
    assert connected.told() == [("disconnected", "h1", False, "ended"), ("connect failed", "h1", "refused")]
    connected.network.connect(connected.hosts[0], "h1")
    connected.run(CONNECT_TIMEOUT_S)
    assert connected.told() == [("connect failed", "h1", "timed out")]


def test_a_machine_that_loses_power_is_silent_until_the_kernel_gives_up(connected):
    connected.network.crash(connected.hosts[1], "silent")
    connected.run(KEEPALIVE_S - 0.1)
    assert connected.told() == []
    connected.run(0.2)
    assert connected.told() == [("disconnected", "h1", False, "timed out")]


def test_a_frame_to_a_new_life_of_a_silent_host_is_reset(connected):
    connected.network.crash(connected.hosts[1], "silent")
    connected.processes[1] = connected.start(connected.hosts[1])
    connected.network.send_frame(connected.hosts[0], "h1", b"x")
    connected.run(1)
    assert connected.told() == [("disconnected", "h1", False, "ended")]
    assert connected.told(1) == []


def test_a_process_that_takes_its_leave_says_goodbye_after_its_last_words(connected):
    connected.network.connect_at_once(connected.hosts[1], connected.hosts[0])
    connected.network.send_frame(connected.hosts[1], "h0", b"last words")
    connected.network.stop(connected.hosts[1])
    connected.run(1)
    assert sorted(connected.told()) == [("disconnected", "h1", True, "ended"), ("frame", "h1", b"last words")]


def test_the_words_sent_just_before_a_crash_arrive():
    world = World()
    world.network.connect_at_once(*world.hosts)
    world.network.send_frame(world.hosts[0], "h1", b"last words")
    world.network.crash(world.hosts[0])
    world.run(1)
    assert world.told(1) == [("frame", "h0", b"last words")]
    assert not world.hosts[1].served


def test_what_waits_for_a_cut_network_goes_with_the_kernel_and_not_with_the_process():
    for kind, arrives in (("process", True), ("container", False), ("silent", False)):
        world = World()
        world.network.connect_at_once(*world.hosts)
        world.network.partition([world.hosts[:1]])
        world.network.send_frame(world.hosts[0], "h1", b"stale")
        world.network.hang_up(world.hosts[0], "h1")
        world.network.crash(world.hosts[0], kind)
        world.run(5)
        world.network.heal()
        world.run(20)
        assert world.told(1) == ([("frame", "h0", b"stale")] if arrives else []), kind


def test_a_paused_process_closes_nothing_and_its_kernel_accepts(connected):
    connected.network.pause(connected.hosts[1], 20.0)
    connected.run(15)
    assert connected.told() == []
    connected.network.hang_up(connected.hosts[0], "h1")
    connected.network.connect(connected.hosts[0], "h1")
    connected.run(CONNECT_TIMEOUT_S + 0.1)
    assert connected.told() == [], "neither refused nor given up: it was accepted"
    connected.run(HELLO_TIMEOUT_S)
    assert connected.told() == [("connect failed", "h1", "timed out")]


def test_a_cut_network_ends_no_connection_before_the_kernel_gives_up(connected):
    connected.network.partition([connected.hosts[:1]])
    connected.network.send_frame(connected.hosts[0], "h1", b"x")
    connected.run(KEEPALIVE_S - 0.1)
    assert connected.told() == []
    connected.run(0.2)
    assert connected.told() == [("disconnected", "h1", False, "timed out")]
    connected.network.connect(connected.hosts[0], "h1")
    connected.run(2)
    assert connected.told() == [("connect failed", "h1", "timed out")]


def test_a_cut_that_heals_in_time_costs_a_connection_nothing_but_time(connected):
    connected.network.partition([connected.hosts[:1]])
    connected.network.send_frame(connected.hosts[0], "h1", b"x")
    connected.run(3)
    connected.network.heal()
    connected.run(20)
    assert connected.told() == []
    assert connected.told(1) == [("frame", "h0", b"x")]


def test_a_refusing_partition_ends_connections_and_refuses_connects_and_streams(connected):
    connected.network.partition([connected.hosts[:1]], refusing=True)
    connected.run(1)
    assert connected.told() == [("disconnected", "h1", False, "ended")]
    connected.network.connect(connected.hosts[0], "h1")
    connected.network.open_stream(connected.hosts[0], "h1", 1, b"x", 1.0)
    connected.network.send(connected.hosts[0], "h1", b"x")
    connected.run(2)
    assert sorted(connected.told()) == [("connect failed", "h1", "refused"), ("no answer", 1, "refused")]
    assert connected.told(1) == []


# --- determinism ------------------------------------------------------------------------------------


def everything(seed: int) -> World:
    """A run in which every kind of fault has its turn."""
    world = World(8, Path(Lognormal(0.002, 0.7), loss=0.05, duplicate=0.05, reorder=0.05), seed)
    network, scheduler, hosts = world.network, world.scheduler, world.hosts
    for source in hosts:
        for target in hosts:
            if source is not target:
                network.connect(source, target.name)

    def talk() -> None:
        for source in hosts:
            for target in hosts:
                if source.running:
                    network.send(source, target.name, b"ping")
                    network.send_frame(source, target.name, b"news")
            if source.running:
                network.open_stream(source, "h3", source.number, b"state", 0.5)
        scheduler.at(scheduler.now_s + 0.3, talk)

    scheduler.at(0.5, talk)
    scheduler.at(2.0, network.starve, hosts[1])
    scheduler.at(3.0, network.pause, hosts[2], 1.5)
    scheduler.at(4.0, network.crash, hosts[3], "container")
    scheduler.at(5.0, network.partition, [hosts[:3]])
    scheduler.at(6.0, network.block, hosts[4], hosts[5])
    scheduler.at(7.0, world.start, hosts[3])
    scheduler.at(8.0, network.heal)
    scheduler.at(9.0, network.crash, hosts[6])
    world.run(15)
    return world


def test_the_same_seed_gives_the_same_log_to_the_byte_and_another_seed_another():
    first, second, other = everything(1), everything(1), everything(2)
    assert len(first.log.lines) > 1000
    assert first.log.lines == second.log.lines
    assert first.log.digest == second.log.digest != other.log.digest
    assert [process.told for process in first.processes] == [process.told for process in second.processes]


def test_the_running_hash_is_that_of_the_kept_lines():
    scheduler = Scheduler()
    kept, hashed = EventLog(scheduler, keep=True), EventLog(scheduler, keep=False)
    for log in (kept, hashed):
        log.write("one")
        log.write("two")
    assert kept.digest == hashed.digest
    assert hashed.lines is None
