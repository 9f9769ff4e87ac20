"""How secrets look: the keys of providers by their beginnings, headers, URLs, and what stands behind a name."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HIDDEN = "***"
_SHORTEST = 4
_SHORTEST_TOKEN = 16

# Where a key may begin: not within a word, but behind what an escape (\n, %20) has left there.
_BEGINS = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_HEX, _WORD, _DASHED = "[0-9a-f]", "[A-Za-z0-9]", r"[A-Za-z0-9_\-]"


@dataclass(frozen=True, slots=True)
class Shape:
    """How the keys of one kind look.

    Args:
        name: Whose keys they are.
        signs: Texts of which each such key has one; a text without any sign of any shape is not looked at any closer.
        hide: Hides the keys of this kind in a text.
        any_case: Whether the signs are in lower case and found in either.
        glance: A pattern to look for first, where the signs are everywhere.
    """

    name: str
    signs: tuple[str, ...]
    hide: Callable[[str], str]
    any_case: bool = False
    glance: str | None = None


def _starting(name: str, start: str, rest: str, *signs: str) -> Shape:
    """Describe keys that begin with one of a few texts, which are their signs unless others are given."""
    found = signs or tuple(start.replace("\\", "").split("|"))
    return Shape(name, found, _matching(f"{_BEGINS}(?P<kept>{start}){rest}"))


def _matching(pattern: str, holds: Callable[[re.Match[str]], bool] | None = None) -> Callable[[str], str]:
    """Hide what a pattern finds, but for its group ``kept``.

    Args:
        holds: Whether a match is a secret, where the pattern alone cannot tell.
    """
    compiled = re.compile(pattern)
    kept = "kept" in compiled.groupindex

    def hidden(match: re.Match[str]) -> str:
        if holds is not None and not holds(match):
            return match[0]
        return (match["kept"] if kept else "") + HIDDEN

    return partial(compiled.sub, hidden)


def _is_basic(match: re.Match[str]) -> bool:
    """Whether it is ``user:password`` in base64, and not the words "Basic authentication"."""
    try:
        return b":" in base64.b64decode(match["secret"] + "==")
    except binascii.Error:
        return False


def is_secret_name(text: str) -> bool:
    """Say whether what stands behind this name, in code or as a key of a JSON object, is a secret."""
    name = text.lower().replace("-", "").replace("_", "")
    return name.endswith(_NAMES) and not name.endswith(_HARMLESS)


def is_secret_value(name: str, value: str, *, is_prose: bool = False) -> bool:
    """Say whether what stands behind such a name is one, and no word of a text or of a program.

    Args:
        is_prose: It stands behind a colon and without quotes, as words do.
    """
    if len(value) < _SHORTEST or _BORING.fullmatch(value) or (is_prose and value.isalpha()):
        return False
    if _CODE.fullmatch(value) and not _CODE_WORDS.isdisjoint(re.split(r"[._]+", value.lower())):
        return False
    last = name.lower()
    if last.endswith("pwd") and value.startswith(("/", "~")):  # a folder
        return False
    if last.endswith(("token", "sig", "signature")):  # of words, pages and models, too
        return len(value) >= _SHORTEST_TOKEN and bool(re.search("[0-9]", value) and re.search("[A-Za-z]", value))
    return True


def _hide_assigned(text: str) -> str:
    """Hide what is assigned to a name like ``password``: in code, headers, queries, and JSON within texts."""
    shown, at = [], 0
    for match in _SEPARATOR.finditer(text):
        if match.start() < at:
            continue
        name = text[max(0, match.start() - _LONGEST_NAME) : match.start()].rstrip(_BEHIND_NAMES)
        if not is_secret_name(name):
            continue
        value = _VALUE.match(text, match.end())
        if value is None:
            continue
        is_prose = ":" in match[0] and not value["quote"]
        is_called = text[value.end() : value.end() + 1] in {"(", "["} and not value["quote"]
        if not is_called and is_secret_value(name, value["secret"], is_prose=is_prose):
            shown += [text[at : value.start("secret")], HIDDEN]
            at = _REST.match(text, value.end()).end()  # type: ignore[union-attr]
    return "".join([*shown, text[at:]])


def _any_case(text: str) -> str:
    """Write a pattern for either case; with a flag, ``re`` would not skip to where it can begin."""
    return re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", text)


_BORING = re.compile(
    r"none|null|nil|true|false|yes|no|str|string|text|bytes|int|any|type|required|optional|empty|missing|invalid|wrong|"
    r"incorrect|expired|changed|unknown|unset|hidden|masked|redacted|default|example|x+|\.+|\*+|[$%].*|.*\*\*\*.*",
    re.IGNORECASE,
)
_CODE = re.compile(r"[A-Za-z_][A-Za-z_.]*")
_CODE_WORDS = {
    *("password", "passwd", "pwd", "pass", "passphrase", "secret", "secrets", "token", "tokens", "key", "keys", "auth"),
    *("credential", "credentials", "value", "values", "self", "cls", "args", "config", "settings", "env", "environ"),
    *("os", "getenv", "user", "request", "response", "data", "field", "param", "params", "options"),
}
_NAMES = (
    *("password", "passwd", "passphrase", "pwd", "secret", "token", "credentials", "amzsignature"),
    *("apikey", "accesskey", "secretkey", "privatekey", "accountkey", "sharedkey", "authkey", "encryptionkey"),
    *("signingkey", "masterkey", "?sig", "&sig", ";sig"),
)
# An ARN has the word within; with the others, a reader asks for the next page.
_HARMLESS = (":secret", "pagetoken", "nexttoken", "continuationtoken")
_LONGEST_NAME = 40
_BEHIND_NAMES = " \t\"'\\"
_SEPARATOR = re.compile(r"=>?|:=?")
_VALUE = re.compile(r"\s{0,3}(?P<quote>\\{0,8}[\"']|)(?P<secret>[^\s\"'\\,;&<>(){}\[\]|`]{4,200})")
_REST = re.compile(r"[^\s\"'\\,;&<>(){}\[\]|`]*")

SHAPES = (
    _starting("Anthropic", "sk-ant-", r"[\w\-*]{8,}"),
    _starting("OpenAI, of a project", "sk-proj-|sk-svcacct-|sk-admin-", r"[\w\-*]{8,}"),
    _starting("OpenRouter, Langfuse", "sk-or-v1-|sk-lf-", r"[\w\-]{16,}"),
    _starting("OpenAI", "sk-", r"(?=[\w\-]{0,200}[\d*])[\w\-*]{16,}"),
    _starting("AWS access key id", "AKIA|ASIA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _starting("Google API", "AIza", f"{_DASHED}{{35}}"),
    _starting("Google OAuth token", r"ya29\.", f"{_DASHED}{{16,}}"),
    _starting("Google OAuth client", "GOCSPX-", f"{_DASHED}{{20,}}"),
    _starting("GitHub", "ghp_|gho_|ghu_|ghs_|ghr_", f"{_WORD}{{20,}}"),
    _starting("GitHub, fine-grained", "github_pat_", r"\w{20,}"),
    _starting("GitLab", "glpat-|gldt-|glrt-|glptt-|glcbt-|gloas-", f"{_DASHED}{{16,}}"),
    _starting("Slack", "xox[abeoprs]-", r"[A-Za-z0-9\-]{10,}", "xox"),
    _starting("Slack app", "xapp-", r"[A-Za-z0-9\-]{16,}"),
    _starting("Slack webhook", r"hooks\.slack\.com/(?:services|workflows)/", r"[\w/]{16,}", "hooks.slack.com"),
    _starting("Discord webhook", r"discord(?:app)?\.com/api/webhooks/", r"[\w/\-]{16,}", "/api/webhooks/"),
    _starting("Stripe", "sk_live_|sk_test_|rk_live_|rk_test_|whsec_", r"[A-Za-z0-9+/]{10,}"),
    _starting("Twilio", "SK", f"{_HEX}{{32}}(?!{_WORD})"),
    _starting("SendGrid", r"SG\.", rf"{_DASHED}{{16,}}\.{_DASHED}{{16,}}"),
    _starting("Mailgun", "key-", f"{_HEX}{{32}}"),
    _starting("Hugging Face", "hf_", f"{_WORD}{{20,}}"),
    _starting("Groq", "gsk_", f"{_WORD}{{16,}}"),
    _starting("xAI", "xai-", f"{_WORD}{{20,}}"),
    _starting("Perplexity", "pplx-", f"{_WORD}{{20,}}"),
    _starting("Replicate", "r8_", f"{_WORD}{{20,}}"),
    _starting("Tavily", "tvly-", f"{_DASHED}{{16,}}"),
    _starting("npm", "npm_", f"{_WORD}{{30,}}"),
    _starting("PyPI", "pypi-", f"{_DASHED}{{40,}}"),
    _starting("Docker", "dckr_pat_|dckr_oat_", f"{_DASHED}{{16,}}"),
    _starting("DigitalOcean", "dop_v1_|doo_v1_|dor_v1_", f"{_HEX}{{32,}}"),
    _starting("Shopify", "shpat_|shpca_|shppa_|shpss_", "[0-9a-fA-F]{32}"),
    _starting("Databricks", "dapi", f"{_HEX}{{32}}"),
    _starting("HashiCorp Vault", r"hvs\.|hvb\.", f"{_DASHED}{{20,}}"),
    _starting("Linear", "lin_api_|lin_oauth_", f"{_WORD}{{20,}}"),
    _starting("Notion", "ntn_", f"{_WORD}{{30,}}"),
    _starting("Grafana", "glsa_|glc_", r"[A-Za-z0-9_+/]{24,}"),
    _starting("Atlassian", "ATATT3", r"[\w=\-]{30,}"),
    _starting("Figma", "figd_", f"{_DASHED}{{20,}}"),
    _starting("PlanetScale", "pscale_tkn_|pscale_pw_", r"[\w.\-]{20,}"),
    _starting("New Relic", "NRAK-", "[A-Z0-9]{20,}"),
    _starting("age", "AGE-SECRET-KEY-1", "[A-Z0-9]{20,}"),
    _starting("Telegram", r"\d{8,10}:AA", f"{_DASHED}{{32,}}", ":AA"),
    Shape(
        "Discord",
        (".",),
        _matching(rf"{_BEGINS}[MNO]{_DASHED}{{23,27}}\.{_DASHED}{{6,7}}\.{_DASHED}{{27,}}"),
        glance=rf"\.{_DASHED}{{6,7}}\.{_DASHED}{{27}}",
    ),
    Shape(
        "JWT",
        ("eyJ",),
        _matching(r"(?:(?<![\w\-])|(?<=\\[nrt]))(?P<kept>eyJ)[\w\-]{8,}\.[\w\-]{8,}(?:\.[\w\-]*)?"),
    ),
    Shape(
        "private key",
        ("-----BEGIN ",),
        # A text that only names the line has no key behind it; one that was cut off has no end.
        _matching(
            r"(?s)(?P<kept>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)(?=.{0,160}?[A-Za-z0-9+/]{24})"
            r"[^-]*(?:-(?!----)[^-]*)*(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
        ),
    ),
    Shape(
        "URL password", ("://",), _matching(r"(?P<kept>://[^\s/:@\"'<>]{0,200}:)(?!\*\*\*@)[^\s/@\"'<>]{1,500}(?=@)")
    ),
    Shape(
        "Authorization header",
        ("authorization",),
        _matching(
            rf"(?P<kept>{_any_case('authorization')}\\{{0,8}}[\"']?\s{{0,3}}[:=]\s{{0,3}}\\{{0,8}}[\"']?"
            rf"(?:(?:{_any_case('basic|bearer|token|bot|apikey|key|digest|negotiate')})\s+(?=\S{{6}})|(?=\S{{16}})(?=\S{{0,400}}\d)))"
            r"[^\s\"',;\\*()]+"
        ),
        any_case=True,
    ),
    Shape(
        "Bearer",
        ("bearer ",),
        _matching(rf"(?P<kept>{_any_case('bearer')} +)(?=[\w.~+/\-]{{0,400}}\d)[\w.~+/\-]{{8,}}=*"),
        any_case=True,
    ),
    Shape(
        "Basic",
        ("basic ",),
        _matching(rf"(?P<kept>{_any_case('basic')} +)(?P<secret>[A-Za-z0-9+/]{{8,}})=*", _is_basic),
        any_case=True,
    ),
    Shape(
        "assigned to a name",
        ("passw", "passphrase", "pwd", "secret", "token", "credentials", "key", "signature", "sig="),
        _hide_assigned,
        any_case=True,
    ),
)
