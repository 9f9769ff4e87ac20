"""The full-text index in a real Postgres: loaded whole, loaded twice, loaded at once, and asked."""

from __future__ import annotations

import json
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import yaml

from loomq.contracts import Contract
from loomq.contrib.pydocs.ask import Ask
from loomq.contrib.pydocs.chunk import cut
from loomq.contrib.pydocs.extract import documents
from loomq.contrib.pydocs.index import Index, spoken_name
from loomq.contrib.pydocs.place import connection, workspace
from loomq.contrib.pydocs.records import write_records
from loomq.errors import BackendError, TransientBackendError
from loomq.llm.asking import Asker
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers
from loomq.testing import fake_llm
from loomq.testing.llm import Rule
from loomq.tools.toolbox import Toolboxes
from loomq.workers.llm import LLMWorkers
from loomq.workers.loop import EventLoop
from loomq.workers.spec import WorkerSpec

REPOSITORY = Path(__file__).parents[2]
STDLIB = Path(sysconfig.get_path("stdlib"))
FILES = ("ftplib.py", "socket.py", "subprocess.py", "json/__init__.py", "tempfile.py", "heapq.py")


@pytest.fixture
def place(tmp_path, monkeypatch, database_url):
    monkeypatch.setenv("LOOMQ_PROJECT", str(tmp_path))
    monkeypatch.setenv("LOOMQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LOOMQ_DATABASE_URL", database_url)
    return workspace()


def passages(files=FILES):
    return [chunk for name in files for document in documents(STDLIB, name) for chunk in cut(document, 900, 200)]


def written(place, chunks, groups=(), python="3.99.0"):
    place.write_json("g/groups.json", list(groups))
    write_records(place, "g/chunks.jsonl", chunks)
    return {"python": python, "root": str(STDLIB), "chunks_ref": "g/chunks.jsonl", "groups_ref": "g/groups.json"}


def load(payload):
    return Index().process_sync(payload, {})["output"]


def ask(question, **more):
    return Ask().process_sync({"question": question, **more}, {})["output"]


def rows(corpus="python-3.99.0"):
    with connection() as opened:
        return opened.execute("SELECT count(*) FROM contrib_pydocs_chunks WHERE corpus = %s", [corpus]).fetchone()[0]


def test_a_question_before_the_index_says_what_to_run(place):
    with pytest.raises(BackendError, match="loomq run pydocs"):
        ask("How?")


def test_a_question_to_a_corpus_that_is_not_indexed_says_what_to_run(place):
    load(written(place, passages(["heapq.py"])))
    with pytest.raises(BackendError, match=r"python-1\.5"):
        ask("How?", corpus="python-1.5")


def test_the_same_text_is_loaded_once_and_another_replaces_it_whole(place):
    chunks = passages()
    first = load(written(place, chunks))
    assert (first["loaded"], first["passages"], rows()) == (True, len(chunks), len(chunks))
    assert load(written(place, chunks))["loaded"] is False
    second = load(written(place, chunks[:40]))
    assert (second["loaded"], second["passages"], rows()) == (True, 40, 40)


def test_two_pythons_stand_side_by_side(place):
    load(written(place, passages(["heapq.py"]), python="3.1.0"))
    load(written(place, passages(["ftplib.py"]), python="3.2.0"))
    assert ask("heap", corpus="python-3.1.0")["passages"]
    assert not ask("heap", corpus="python-3.2.0")["passages"]
    assert ask("heap")["corpus"] == "python-3.2.0"


def test_loads_at_once_end_with_one_whole_corpus(place):
    chunks = passages()
    payloads = []
    for number in range(6):
        write_records(place, f"g/chunks_{number}.jsonl", chunks[: 30 + number % 2])
        payloads.append(written(place, chunks) | {"chunks_ref": f"g/chunks_{number}.jsonl"})
    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(load, payloads))
    assert {output["passages"] for output in outputs} == {30, 31}
    assert rows() in {30, 31}


def test_a_load_that_fails_leaves_the_old_corpus(place):
    load(written(place, passages(["heapq.py"])))
    before = rows()
    place.write_text("g/chunks.jsonl", "{}\n")
    with pytest.raises(TypeError):
        load({"python": "3.99.0", "root": "/", "chunks_ref": "g/chunks.jsonl", "groups_ref": "g/groups.json"})
    assert rows() == before > 0


def test_an_answer_cites_lines_that_say_it(place):
    load(written(place, passages()))
    found = ask("How do I run a subprocess and capture its output?")
    assert found["every_word_found"] is True
    assert {passage["package"] for passage in found["passages"]} == {"subprocess"}
    assert len(found["answer"].split("\n")) == 3
    for passage in found["passages"]:
        line = (STDLIB / passage["file"]).read_text().split("\n")[passage["line"] - 1]
        assert passage["sentence"].split()[0] in line
        marked = {passage["sentence"][start:end].lower() for start, end in passage["highlights"]}
        assert marked
        assert marked <= {"run", "running", "runs", "capture", "captured", "output", "subprocess", "subprocesses"}
    cited = [passage for passage in found["passages"] if f"{passage['citation']}]" in found["answer"]]
    assert len(cited) == 3
    assert all(passage["sentence"] in found["answer"] for passage in cited)


def test_a_question_with_one_strange_word_is_answered_from_the_others(place):
    load(written(place, passages()))
    found = ask("temporary directory zxqvwk")
    assert found["every_word_found"] is False
    assert found["passages"][0]["package"] == "tempfile"


def test_a_word_that_is_ruled_out_stays_out(place):
    load(written(place, passages()))
    assert "tempfile" in {passage["package"] for passage in ask("temporary directory", limit=20)["passages"]}
    found = ask("temporary -directory", limit=20)["passages"]
    assert found
    assert not [passage for passage in found if "directory" in passage["text"].lower()]


def test_near_duplicates_are_cited_once(place):
    chunks = passages(["heapq.py"])
    original = next(chunk for chunk in chunks if chunk.symbol == "heapq.merge")
    twin = replace(original, id="twin", symbol="mine.merge")
    alone = ask_after(place, [*chunks, twin], [])
    grouped = ask_after(place, [*chunks, twin], [{"members": [{"id": original.id}, {"id": "twin"}]}])
    assert len(alone) == len(grouped) + 1 == 2


def ask_after(place, chunks, groups):
    load(written(place, chunks, groups))
    return [passage for passage in ask("merge sorted", limit=20)["passages"] if passage["every_word"]]


@pytest.mark.parametrize(
    "question",
    ["the of and", "-run", '"', '""', "a & b | c ! <-> :*", "'; DROP TABLE contrib_pydocs_chunks; --", "\\", "%s %(x)s",
     "http://a&b=c|d", "or or or", "né ☃ \u202e", "( ) (", "run " * 120],
)  # fmt: skip
def test_any_question_is_answered_without_an_error(place, question):
    load(written(place, passages(["heapq.py"])))
    assert ask(question)["question"] == " ".join(question.split())


def test_postgres_out_of_reach_is_worth_another_try(place, monkeypatch):
    monkeypatch.setenv("LOOMQ_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(TransientBackendError, match="did not answer") as caught:
        ask("How?")
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)


def test_names_are_split_into_the_words_that_people_ask_for():
    assert spoken_name("ftplib.FTP.makePort") == "ftplib FTP makePort ftplib FTP make Port"
    assert spoken_name("help('with')") == "help with "


def test_a_model_searches_the_index_as_the_shipped_expert_lets_it(place, tmp_path):
    load(written(place, passages()))
    spec = WorkerSpec.model_validate(yaml.safe_load((REPOSITORY / "workers/pydocs_expert.yaml").read_text()))
    found = []

    def answer(call):
        if not call.tool_results:
            return Rule(tool_calls=[{"name": "search_docs", "arguments": {"query": "temporary directory"}}])
        found.extend(json.loads(call.body["messages"][-1]["content"]))
        return Rule(json={"answer": "Use TemporaryDirectory.", "citations": [found[0]["citation"]]})

    pool, loop = HttpPool(), EventLoop()
    with fake_llm([answer]) as server:
        asker = Asker(Tiers(pool, LLMSettings(server.environment("openai"))))
        models = LLMWorkers(asker, loop, Toolboxes(tmp_path, ()), tmp_path)
        output = models.run(spec, {"question": "Where do I put temporary files?"}, "standard", 30).output
        loop.run(pool.aclose(), 5)
    assert Contract(spec.output_schema).holds(output)
    assert output["citations"][0].startswith("tempfile.py:")
    assert set(found[0]) == {"symbol", "citation", "text"}
    assert len(found) <= 4
