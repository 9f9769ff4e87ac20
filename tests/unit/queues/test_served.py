"""The queues that a node serves, told to processes that were forked before."""

import os

from loomq.queues.served import Served


def test_nothing_is_known_until_something_is_said():
    assert Served().names is None


def test_a_child_hears_what_its_parent_says_after_the_fork():
    served = Served()
    served.tell(["a"])
    into, out = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.write(out[1], repr(sorted(served.names)).encode() + b"\n")
        os.read(into[0], 1)
        os.write(out[1], repr(sorted(served.names)).encode() + b"\n")
        os._exit(0)
    assert os.read(out[0], 100) == b"['a']\n"
    served.tell(["c", "b"])
    os.write(into[1], b"x")
    assert os.read(out[0], 100) == b"['b', 'c']\n"
    assert os.waitpid(pid, 0)[1] == 0


def test_what_is_being_written_is_not_read():
    served = Served()
    served.tell(["a"])
    assert served.names == {"a"}
    served._shared[:8] = (3).to_bytes(8, "little")  # the writer is at work
    assert served.names == {"a"}
    served.tell([])
    assert served.names == set()


def test_more_than_fits_leaves_what_was_known():
    served = Served()
    served.tell(["a"])
    served.tell([f"{number:0100}" for number in range(20_000)])
    assert served.names == {"a"}
