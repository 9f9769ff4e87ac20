"""``loomq reload``: let the worker nodes read the project's files again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from loomq.services.reload import NodeReload


@click.command("reload")
@json_option
@pass_invocation
def command(invocation: Invocation, as_json: bool) -> int:
    """Let every live worker node read the project's files again: workers, pipelines, router rules and limits.

    Each node reads its own disk. Files with errors are refused, and the node goes on with what they said before. Goals
    that are under way keep their snapshot of workers and pipelines; rules and limits hold for them too, at once. Python
    code is not loaded anew: restart the node for that.
    """
    from loomq.cli.output import emit, say
    from loomq.services.reload import reload

    found = reload(invocation.ready())
    refused = [node for node in found if node.outcome != "read"]
    if as_json:
        emit({"schema_version": 1, "nodes": [node.to_json() for node in found]})
    elif not found:
        say("the files are right; no live worker node is there to read them")
    else:
        for node in found:
            print(f"{node.node}: {_told(node)}")
    return 1 if refused else 0


def _told(node: NodeReload) -> str:
    if node.outcome == "silent":
        return "no answer; it reads the files when it is restarted"
    if node.outcome == "refused":
        return f"refused, it goes on with what it had: {(node.error or {}).get('message')}"
    words = [
        f"{word} {', '.join(node.change[word])}" for word in ("added", "changed", "removed") if node.change.get(word)
    ]
    if node.change.get("queues"):
        words.append(f"new queues {', '.join(node.change['queues'])}")
    if node.change.get("rules"):
        words.append("other router rules")
    return "; ".join(words) or "nothing has changed"
