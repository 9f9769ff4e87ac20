"""``python -m tests.chaos COMMAND``: a JSON line a run on stdout; exit code 1 if it is not sound."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from tests.chaos import nemeses
from tests.chaos.report import faults_of, report, tell
from tests.chaos.storm import Storm, World


def _kinds(options: argparse.Namespace) -> list[str]:
    if options.only:
        return list(options.only)
    known = {**nemeses.PROCESSES, **nemeses.BROKER, **({} if options.amqp else nemeses.REDIS)}
    return [kind for kind in known if kind not in options.without]


def _storm(options: argparse.Namespace) -> bool:
    sound = True
    broker_url = os.environ.get("LOOMQ_TEST_AMQP_URL") if options.amqp else None
    if options.amqp and not broker_url:
        sys.stderr.write("LOOMQ_TEST_AMQP_URL is not set: no storm on RabbitMQ\n")
        return True
    for seed in options.seeds:
        world = World.make(broker_url=broker_url, limited=options.limited)
        broken: list[str] = ["no report"]
        try:
            storm = Storm(world, seed, options.goals, options.faults, _kinds(options), poison=not options.no_poison)
            storm.run()
            figures = report(storm)
            broken = faults_of(figures)
            tell(figures)
        finally:
            world.close(keep=bool(broken) or options.keep)
        if broken:
            sys.stderr.write(f"seed {seed}: not zero: {', '.join(broken)}\n")
        sound = sound and not broken
    return sound


def _broker_down(options: argparse.Namespace) -> bool:
    from tests.chaos.outage import broker_down

    return broker_down(options.seconds, options.submits, keep=options.keep)


def _schedules(options: argparse.Namespace) -> bool:
    from tests.chaos.schedules import schedules

    return schedules(options.ticks, options.interval, options.every, keep=options.keep)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep logs and ledger of sound runs too")
    commands = parser.add_subparsers(required=True)
    storm = commands.add_parser("storm", help="run goals while faults strike")
    storm.add_argument("--goals", type=int, default=500)
    storm.add_argument("--faults", type=int, default=40)
    storm.add_argument("--seeds", type=int, nargs="+", default=[1])
    storm.add_argument("--only", nargs="*", choices=nemeses.NEMESES, help="kinds of fault; all if not given")
    storm.add_argument("--without", nargs="*", choices=nemeses.NEMESES, default=[])
    storm.add_argument("--no-poison", action="store_true", help="no work that kills its own process")
    storm.add_argument("--amqp", action="store_true", help="on LOOMQ_TEST_AMQP_URL; nothing is done if it is not set")
    storm.add_argument("--limited", action="store_true", help="under rates, slots and keys; on Redis")
    storm.set_defaults(run=_storm)
    down = commands.add_parser("broker-down", help="hand in goals while the broker is down")
    down.add_argument("--seconds", type=float, default=60)
    down.add_argument("--submits", type=int, default=200)
    down.set_defaults(run=_broker_down)
    two = commands.add_parser("schedules", help="let two beats fire while either is killed or stopped")
    two.add_argument("--ticks", type=int, default=200)
    two.add_argument("--interval", type=float, default=1.0, help="seconds between two due times")
    two.add_argument("--every", type=float, default=10.0, help="seconds between two strikes")
    two.set_defaults(run=_schedules)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and nodes are ended as well
    return 0 if options.run(options) else 1


if __name__ == "__main__":
    sys.exit(main())
