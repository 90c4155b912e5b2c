"""Laws of the stream that need no dialogue: turns, and what ends a wait."""

from __future__ import annotations

import time

import gevent
import pytest
from gevent import socket

from engine.net.stream import DeadlinePassed, Stream

STREAMS = 1000


@pytest.fixture
def pairs():
    """Connected streams, and the peers' ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=STREAMS)
    streams, peers = [], []
    for _ in range(STREAMS):
        stream = Stream("127.0.0.1")
        stream.deadline = time.monotonic() + 60.0
        stream.connect(listener.getsockname()[1])
        streams.append(stream)
        peers.append(listener.accept()[0])
    yield list(zip(streams, peers, strict=True))
    for each in (*streams, *peers, listener):
        each.close()


def test_hundreds_of_ready_streams_hold_up_no_timer(pairs):
    """All peers answer at once and each answer takes a millisecond: a timer rings long before the last is read."""
    done, rang_after = [], []

    def read(stream):
        stream.read()
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass
        done.append(stream)

    for _ in range(2):  # the loop asks the kernel for more at a time once it has seen that many
        done.clear()
        readers = [gevent.spawn(read, stream) for stream, _ in pairs]
        gevent.sleep(0)
        for _, peer in pairs:
            peer.send(b"x")
        timer = gevent.get_hub().loop.timer(0.02)
        timer.start(lambda: rang_after.append(len(done)), update=True)
        gevent.joinall(readers, timeout=30, raise_error=True)
        timer.close()
        assert len(done) == STREAMS
    assert rang_after[1] < STREAMS // 2


def test_an_answer_that_came_in_time_is_read_though_its_turn_comes_late(pairs):
    """The deadline passes while others have their turn: what lies ready in the socket is no silence."""
    (stream, peer), read = pairs[0], []
    reader = gevent.spawn(lambda: read.append(stream.read()))
    stream.deadline = time.monotonic() + 0.05
    gevent.sleep(0)
    peer.send(b"x")
    while time.monotonic() < stream.deadline + 0.05:  # nobody runs the loop
        pass
    reader.get(timeout=10)
    assert read == [b"x"]


def test_silence_ends_at_the_deadline(pairs):
    """And the stream can be waited on again after it."""
    stream, peer = pairs[0]
    stream.deadline = time.monotonic() + 0.05
    with pytest.raises(DeadlinePassed):
        stream.read()
    stream.deadline = time.monotonic() + 10.0
    peer.send(b"x")
    assert stream.read() == b"x"


def test_a_killed_reader_takes_no_turn(pairs):
    """A turn that was given to a greenlet which is gone wakes nobody, and the next reader gets the answer."""
    stream, peer = pairs[0]
    reader = gevent.spawn(stream.read)
    gevent.sleep(0)
    peer.send(b"x")
    reader.kill()
    assert stream.read() == b"x"
