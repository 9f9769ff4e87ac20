"""New projects, workers, pipelines and schedules: files that validate and run at once, and that never replace one."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from loomq.catalog import load_catalog, resolve_schemas
from loomq.config import NAME_PATTERN
from loomq.contracts import Contract
from loomq.errors import ConfigError, UnknownNameError
from loomq.problems import listed, suggest
from loomq.registry import project_on_path
from loomq.schedules.clock import Cron
from loomq.schedules.words import meaning_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.resources.abc import Traversable

    from loomq.catalog import Catalog
    from loomq.settings import Settings

TEMPLATES = ("minimal", "llm", "etl")
_SUFFIX = ".tmpl"
_CRON_FIELDS = 5
_HERE = "scaffold_templates"
_SCHEMAS = ".loomq/schemas"

_RUN = {
    "minimal": ("loomq run hello 'all roads lead to somewhere'", "loomq try word_count -i text='one two'"),
    "llm": (
        "loomq fake-llm --rules fake_llm.yaml     # in another terminal; or set a key and a model of your own",
        "loomq run ticket 'Where is my invoice?'  # after the `export` lines that fake-llm prints",
    ),
    "etl": ("loomq run orders", "loomq graph orders"),
}


@dataclass(frozen=True, slots=True)
class Made:
    """What was written, and what to type next.

    Args:
        files: Relative to the project.
        changed: Files that were there and got a line more.
    """

    project: Path
    files: tuple[str, ...]
    changed: tuple[str, ...]
    next: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe what was made."""
        return {
            "schema_version": 1,
            "project": str(self.project),
            "files": list(self.files),
            "changed": list(self.changed),
            "next": list(self.next),
        }


def new_project(folder: Path, template: str) -> Made:
    """Write a project.

    Args:
        folder: Made if it is not there; may hold other files.
        template: One of ``TEMPLATES``.

    Raises:
        ConfigError: A file that would be written is there already.
    """
    package = _package_name(folder.resolve().name, folder)
    texts = {
        path.replace("package/", f"{package}/", 1) if path.startswith("package/") else path: text
        for path, text in _filled(_templates() / template, {"package": package}).items()
    }
    texts |= _schemas(folder, ("worker", "pipeline"))
    _write(folder.resolve(), texts)
    go = () if folder.resolve() == Path.cwd() else (f"cd {folder}",)
    return Made(folder.resolve(), tuple(sorted(texts)), (), (*go, "loomq validate", *_RUN[template]))


def new_worker(settings: Settings, name: str, kind: str) -> Made:
    """Add a worker: for ``processor`` its YAML and its code, for ``llm`` its YAML.

    Raises:
        ConfigError: The name is malformed, a file is there already, or no package of the project may be imported.
    """
    _check_name(name)
    texts, changed = _worker_texts(settings, name, kind)
    return _made(
        settings, texts, changed, (f"loomq try {name} -i text='some text'", f"loomq run {name} -i text='some text'")
    )


def new_pipeline(settings: Settings, name: str, worker: str | None) -> Made:
    """Add a pipeline of one stage, whose mapping fits its worker's contract.

    Args:
        worker: Which one it runs; by default a processor of the project, or a new one if there is none.

    Raises:
        ConfigError: As ``new_worker``.
        UnknownNameError: No worker is called so.
    """
    _check_name(name)
    project_on_path(settings.project)
    catalog, _ = load_catalog(settings)
    chosen = worker or _some_processor(catalog)
    texts: dict[str, str] = {}
    changed: dict[str, str] = {}
    sample: dict[str, Any] = {"text": "some text"}
    if chosen is None:
        chosen = f"{name}_step"
        texts, changed = _worker_texts(settings, chosen, "processor")
        mapping = {"text": "goal.context.text"}
    elif chosen not in catalog.workers:
        known = sorted(catalog.workers)
        hint = suggest(chosen, known) or f"{settings.project} has {listed(known) if known else 'none'}"
        raise UnknownNameError(f'no worker is called "{chosen}", or its file has errors', hint=hint)
    else:
        schema = resolve_schemas(catalog.workers[chosen], allow=settings.import_allow).input or {}
        mapping, sample = _mapping(schema), _sample(schema)
    lines = "".join(f"\n      {target}: {path}" for target, path in mapping.items()) or " {}"
    values = {"name": name, "worker": chosen, "mapping": lines}
    texts |= {f"pipelines/{name}.yaml": _fill(_templates() / "new" / "pipeline.yaml.tmpl", values)}
    texts |= _schemas(settings.project, ("pipeline",))
    inputs = "".join(f" -i {key}={_shell(value)}" for key, value in sample.items())
    return _made(settings, texts, changed, (f"loomq plan {name}", f"loomq run {name}{inputs}"))


def new_orchestrator(settings: Settings, name: str, workers: Sequence[str] = ()) -> Made:
    """Add an orchestrator whose plans may use some workers.

    Args:
        workers: Which; by default all that the project has now, or a new one if there is none.

    Raises:
        ConfigError: As ``new_worker``.
        UnknownNameError: No worker is called so.
    """
    _check_name(name)
    project_on_path(settings.project)
    catalog, _ = load_catalog(settings)
    texts: dict[str, str] = {}
    changed: dict[str, str] = {}
    chosen = list(dict.fromkeys(workers)) or sorted(catalog.workers)
    if not chosen:
        chosen = [f"{name}_step"]
        texts, changed = _worker_texts(settings, chosen[0], "processor")
    elif unknown := [one for one in chosen if one not in catalog.workers]:
        hint = suggest(unknown[0], catalog.workers) or f"{settings.project} has {listed(sorted(catalog.workers))}"
        raise UnknownNameError(f'no worker is called "{unknown[0]}", or its file has errors', hint=hint)
    lines = "".join(f"\n  - name: {one}" for one in chosen)
    texts |= {f"pipelines/{name}.yaml": _fill(_templates() / "new" / "orchestrator.yaml.tmpl",
                                              {"name": name, "workers": lines})}  # fmt: skip
    texts |= _schemas(settings.project, ("orchestrator",))
    run = f'loomq run {name} "what you want"'
    stand_in = f"loomq fake-llm --extractive --port 0 --unless-configured -- {run}"
    return _made(settings, texts, changed, (f"loomq plan {name}", run, f"without a model: {stand_in}"))


def new_schedule(settings: Settings, name: str, target: str | None, when: str | None) -> Made:
    """Add a schedule of one entry.

    Args:
        target: The pipeline, orchestrator or worker that it hands work in to; by default the project's first.
        when: A cron expression, or words as ``every`` takes them.

    Raises:
        ConfigError: As ``new_worker``; or ``when`` is neither.
        UnknownNameError: Nothing is called so.
    """
    _check_name(name)
    project_on_path(settings.project)
    catalog, _ = load_catalog(settings)
    known = [*sorted(catalog.pipelines), *sorted(catalog.orchestrators), *sorted(catalog.workers)]
    chosen = target or next(iter(known), None)
    if chosen is None or chosen not in known:
        hint = suggest(chosen or "", known) or "add one first: loomq new pipeline NAME"
        raise UnknownNameError(f'no pipeline, orchestrator or worker is called "{chosen or name}"', hint=hint)
    text = when or "day at 06:00"
    try:
        is_words = meaning_of(text) is not None
    except ValueError as error:
        is_words = False
        try:
            Cron(text)
        except ValueError as other:
            told = other if len(text.split()) >= _CRON_FIELDS and text[0] in "*@0123456789" else error
            raise ConfigError(str(told), hint='write --when "weekday at 09:00" or --when "0 9 * * *"') from None
    if chosen in catalog.workers and chosen not in {*catalog.pipelines, *catalog.orchestrators}:
        schema = resolve_schemas(catalog.workers[chosen], allow=settings.import_allow).input or {}
        kind, body = "task", {"worker_type": chosen, "payload": _sample(schema)}
    else:
        pipeline = catalog.pipelines.get(chosen)
        schema = (pipeline.input_schema if pipeline else None) or {}
        kind, body = "goal", {"instruction": "say here what is wanted", "pipeline": chosen, "context": _sample(schema)}
    values = {
        "name": name,
        "entry": "regular",
        "kind": kind,
        "when": f"every: {text}" if is_words else f"cron: {json.dumps(text)}",
        "what": f"    {kind}:\n"
        + "".join(f"      {key}: {json.dumps(value)}\n" for key, value in body.items()).rstrip(),
    }
    texts = {f"schedules/{name}.yaml": _fill(_templates() / "new" / "schedule.yaml.tmpl", values)}
    texts |= _schemas(settings.project, ("schedule",))
    return _made(
        settings, texts, {}, (f"loomq schedule next 5 --of {name}", f"loomq schedule trigger {name}", "loomq dev")
    )


def _worker_texts(settings: Settings, name: str, kind: str) -> tuple[dict[str, str], dict[str, str]]:
    folder = _templates() / "new"
    texts = _schemas(settings.project, ("worker",))
    if kind == "llm":
        return texts | {f"workers/{name}.yaml": _fill(folder / "llm.yaml.tmpl", {"name": name})}, {}
    package, changed = _own_package(settings)
    values = {"name": name, "package": package}
    texts[f"workers/{name}.yaml"] = _fill(folder / "processor.yaml.tmpl", values)
    place = package.replace(".", "/")
    texts[f"{place}/{name}.py"] = _fill(folder / "processor.py.tmpl", values)
    if not (settings.project / place / "__init__.py").exists():
        texts[f"{place}/__init__.py"] = '"""The code that this project\'s workers run."""\n'
    return texts, changed


def _own_package(settings: Settings) -> tuple[str, dict[str, str]]:
    """Name the package that new code goes into, and give the ``loomq.toml`` that allows it if it does not yet."""
    for package in settings.import_allow:
        if (settings.project / package.replace(".", "/")).is_dir() or _is_free(package):
            return package, {}
    toml = settings.project / "loomq.toml"
    text = toml.read_text(encoding="utf-8") if toml.exists() else ""
    if settings.import_allow or "import_allow" in tomllib.loads(text):
        raise ConfigError(
            f"import_allow names no package of the project: {listed(settings.import_allow) or 'it is empty'}",
            hint=f"add the name of a folder of {settings.project} to import_allow in loomq.toml",
        )
    package = _package_name(settings.project.name, settings.project)
    return package, {"loomq.toml": f'import_allow = ["{package}"]\n{text}'}


def _package_name(wanted: str, project: Path) -> str:
    """Make a package's name of a folder's, one that nothing installed has."""
    plain = re.sub(r"[^a-z0-9_]+", "_", wanted.lower()).strip("_")
    name = plain if re.fullmatch(NAME_PATTERN, plain) else "work"
    taken = name in {"workers", "pipelines", "schedules", "deploy", "data", "tests"} or not _is_free(name)
    return f"{name}_work" if taken and not (project / name / "__init__.py").exists() else name


def _is_free(package: str) -> bool:
    top = package.partition(".")[0]
    return top not in sys.stdlib_module_names and find_spec(top) is None


def _some_processor(catalog: Catalog) -> str | None:
    return next((name for name, worker in sorted(catalog.workers.items()) if worker.worker_kind == "processor"), None)


def _mapping(schema: Mapping[str, Any]) -> dict[str, str]:
    required = schema.get("required", [])
    return {
        name: f"goal.context.{name}" if name in required else f"goal.context.{name}?"
        for name in schema.get("properties", {})
        if re.fullmatch(r"[A-Za-z_]\w*", name)
    }


def _sample(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Make up an input that a contract takes; empty where that would take more than a guess."""
    properties = schema.get("properties", {})
    found = {name: _value(properties.get(name, {})) for name in schema.get("required", [])}
    return found if Contract(schema).holds(found) else {}


def _value(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return "some text"
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    kinds = {"integer": schema.get("minimum", 1), "number": schema.get("minimum", 1), "boolean": True}
    return {**kinds, "array": [], "object": {}, "null": None}.get(str(schema.get("type")), "some text")


def _shell(value: Any) -> str:
    import shlex

    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f'"{name}" cannot be a name', hint="use lower-case letters, digits and _, beginning with a letter"
        )


def _made(settings: Settings, texts: dict[str, str], changed: dict[str, str], following: tuple[str, ...]) -> Made:
    is_new = {path for path in changed if not (settings.project / path).exists()}
    _write(settings.project, texts | {path: changed[path] for path in is_new})
    for path in changed.keys() - is_new:
        (settings.project / path).write_text(changed[path], encoding="utf-8")
    written = tuple(sorted({*texts, *is_new}))
    return Made(settings.project, written, tuple(sorted(changed.keys() - is_new)), ("loomq validate", *following))


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files, none of which may be there.

    Raises:
        ConfigError: Some are; then nothing is written.
    """
    there = [path for path in sorted(texts) if (folder / path).exists()]
    if there:
        raise ConfigError(
            f"{folder} has {listed(there)} already; nothing was written",
            hint="choose another name or folder, or move what is there away",
        )
    for path, text in texts.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)


def _schemas(project: Path, kinds: tuple[str, ...]) -> dict[str, str]:
    """Give the JSON Schemas that editors check against; they stand in the project, so they work offline and in git."""
    names = [f"{kind}.schema.json" for kind in kinds]
    source = files("loomq") / "schemas"
    return {
        f"{_SCHEMAS}/{name}": (source / name).read_text(encoding="utf-8")
        for name in names
        if not (project / _SCHEMAS / name).exists()
    }


def _templates() -> Traversable:
    return files("loomq") / "services" / _HERE


def _filled(folder: Traversable, values: Mapping[str, str], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _filled(entry, values, f"{above}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            found[above + entry.name.removesuffix(_SUFFIX)] = _fill(entry, values)
    return found


def _fill(template: Traversable, values: Mapping[str, str]) -> str:
    return Template(template.read_text(encoding="utf-8")).substitute(values)
