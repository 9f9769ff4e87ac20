"""What ``deploy/`` says holds together, checked as far as it can be without a container engine; templates are true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from loomq.kinds import KINDS
from loomq.pipelines.spec import StageSpec
from loomq.services.configs import validate
from loomq.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "loomq"}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
TEMPLATES = {"worker": "workers", "pipeline": "pipelines", "schedule": "schedules"}


def words(service: dict) -> str:
    return " ".join([*service.get("entrypoint", []), *service.get("command", [])])


def test_compose_has_the_services_and_one_node_for_each_class_of_queues():
    nodes = {words(service).split()[2] for name, service in SERVICES.items() if name.startswith("worker-")}
    assert nodes == {"local", "standard", "frontier"}
    assert {"postgres", "valkey", "migrate", "beat", "flower"} <= set(SERVICES)


def test_what_compose_names_exists():
    networks, volumes = set(COMPOSE["networks"]), set(COMPOSE["volumes"])
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= networks, name
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= volumes, name
        for file in service["env_file"]:
            assert (DEPLOY / f"{file}.example").is_file(), file


def test_compose_and_its_examples_hold_no_secret():
    assert not [name for name, service in SERVICES.items() if service.get("environment")]
    text = (DEPLOY / "compose.yaml").read_text()
    assert not re.search(
        r"(?i)(password|secret|token|auth)\w*\s*(?:=|:(?!\?))\s*[^$\s\"]", text.split("services:", 1)[1]
    )
    for example in DEPLOY.glob("*.example"):
        for name, _, value in (line.partition("=") for line in example.read_text().splitlines() if "=" in line):
            if re.search("PASSWORD|KEY|AUTH", name):
                assert value == "", f"{example.name}: {name}"
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "deploy/*.env" in ignored


def test_only_flower_is_published_on_loopback_read_only_and_not_without_a_password():
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "flower": ["127.0.0.1:5555:5555"]
    }
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == SERVICES["valkey"]["networks"] == ["inside"]
    assert "--read_only" in words(SERVICES["flower"])
    assert "${FLOWER_BASIC_AUTH:?" in words(SERVICES["flower"]).replace("$$", "$")


def test_flower_refuses_to_start_without_a_password():
    line = SERVICES["flower"]["command"][0].replace("$$", "$")
    done = subprocess.run(["/bin/sh", "-c", line], env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "write user:password into flower.env" in done.stderr


def test_every_service_that_stays_is_watched_and_comes_back():
    for name, service in SERVICES.items():
        if name == "migrate":
            assert service["restart"] == "on-failure"
            continue
        assert service["restart"] == "unless-stopped", name
        check = service["healthcheck"]
        assert (name == "beat") == bool(check.get("disable")), name
        assert "test" in check or check["disable"], name


def test_our_containers_may_do_little():
    assert len(OURS) == 6
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_images_are_pinned_to_a_version():
    images = [service["image"] for service in SERVICES.values() if service["image"] != "loomq"]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 4
    for image in images:
        assert re.search(r":\d", image), image


def test_the_image_is_built_in_two_stages_from_hashed_pins_and_runs_as_nobody_special():
    build, final = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    installs = re.findall(r"pip install (.*)", build)
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert "pip install" not in final
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert final.index("USER ") < final.index("ENTRYPOINT")
    assert not re.search(r"^ADD |:latest|^RUN .*(curl|wget|sudo)", DOCKERFILE, re.MULTILINE)


def test_what_the_image_copies_is_there_and_not_ignored():
    sent = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    ]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path in sent, path


def test_the_build_backend_s_pin_is_found_by_the_image_s_awk():
    program = re.search(r"awk '([^']+)'", DOCKERFILE)
    assert program
    done = subprocess.run(
        ["awk", program[1], ROOT / "requirements/dev.lock"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("setuptools==")
    assert all("--hash=sha256:" in line for line in lines[1:])
    assert not lines[-1].endswith("\\")
    pinned = lines[0].split("==")[1].split()[0]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"] == ["setuptools>=80"]
    assert int(pinned.split(".")[0]) >= 80


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_ends_its_processes_in_good_order_and_may_do_little(unit):
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"[A-Z]\w+=", line))
    assert lines["KillMode"] == "mixed"
    assert lines["Restart"] == "always"
    assert lines["User"] == "loomq"
    assert lines["EnvironmentFile"] == "/etc/loomq/loomq.env"
    assert lines["ProtectSystem"] == "strict"
    assert "%i" in unit.read_text()
    assert not re.search("://|PASSWORD=|KEY=", unit.read_text())


def test_there_is_a_unit_for_nodes_and_one_for_beats():
    assert [unit.name for unit in UNITS] == ["loomq-beat@.service", "loomq-worker@.service"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit, tmp_path):
    copy = tmp_path / unit.name.replace("@", "@total.local")
    copy.write_text(unit.read_text().replace("/opt/loomq/bin", str(Path(sys.executable).parent)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_make_flower_is_read_only_on_loopback_with_a_random_password():
    target = re.search(r"^flower:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target
    recipe = target[1]
    assert "secrets.token_urlsafe" in recipe
    assert "--address=127.0.0.1" in recipe
    assert "--read_only" in recipe
    assert 'FLOWER_BASIC_AUTH="loomq:$$password"' in recipe
    assert "--basic_auth" not in recipe  # it would stand in the process list


@pytest.fixture
def project(tmp_path):
    """The templates as a user copies them: under the names that they have."""
    for folder in TEMPLATES.values():
        text = (ROOT / folder / "_template.yaml").read_text()
        name = yaml.safe_load(text)["name"]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(text)
    return tmp_path


def test_the_templates_are_valid(project):
    assert validate(Settings(project=project)).problems == ()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_names_every_key_that_this_version_acts_on_and_tells_defaults_truly(kind):
    text = (ROOT / TEMPLATES[kind] / "_template.yaml").read_text()
    model = KINDS[kind].model
    fields = dict(model.model_fields)
    refused = {row.path for row in KINDS[kind].not_yet if row.values is None}
    for name in fields.keys() - refused - {"reset_after_task"}:
        assert re.search(rf"^(?:# +)?{name}:", text, re.MULTILINE), name
    for name, value in re.findall(r"^# (\w+): (.+)$", text, re.MULTILINE):
        field = fields[name]
        default = field.get_default(call_default_factory=True)
        if default is not None:
            given = yaml.safe_load(value)
            shown = default.model_dump() if hasattr(default, "model_dump") else default
            assert (tuple(given) if isinstance(shown, tuple) else given) == shown, name


def test_the_pipeline_s_template_shows_every_key_of_a_stage():
    stages = yaml.safe_load((ROOT / "pipelines" / "_template.yaml").read_text())["pipeline_stages"]
    shown = {key for stage in stages for key in stage}
    hidden = {"pipeline", "input_schema", "output_schema", "input_schema_ref", "output_schema_ref"}
    assert shown == set(StageSpec.model_fields) - hidden
