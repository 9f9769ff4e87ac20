"""An example of each shape of a secret, put together here so that no scanner takes this file for a leak."""

from __future__ import annotations

_HEX = "0123456789abcdef" * 4
_WORD = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"
_BIG = _WORD.upper()

#: The text of a secret, and the part of it that must not be seen, by the shape's name.
EXAMPLES: dict[str, tuple[str, str]] = {
    name: (before + secret + after, secret)
    for name, (before, secret, after) in {
        "Anthropic": ("sk-ant-", f"api03-{_WORD}", ""),
        "OpenAI, of a project": ("sk-proj-", _WORD, ""),
        "OpenRouter, Langfuse": ("sk-or-v1-", _HEX, ""),
        "OpenAI": ("sk-", _WORD, ""),
        "AWS access key id": ("AKIA", _BIG[:16], ""),
        "Google API": ("AIza", _WORD[:35], ""),
        "Google OAuth token": ("ya29.", f"a0_{_WORD}", ""),
        "Google OAuth client": ("GOCSPX-", _WORD[:28], ""),
        "GitHub": ("ghp_", _WORD[:36], ""),
        "GitHub, fine-grained": ("github_pat_", f"{_WORD[:22]}_{_WORD}", ""),
        "GitLab": ("glpat-", _WORD[:20], ""),
        "Slack": ("xoxb-", f"123456789012-1234567890123-{_WORD[:24]}", ""),
        "Slack app": ("xapp-", f"1-{_BIG[:11]}-1234567890123-{_HEX}", ""),
        "Slack webhook": ("https://hooks.slack.com/services/", f"T{_BIG[:8]}/B{_BIG[:10]}/{_WORD[:24]}", ""),
        "Discord webhook": ("https://discord.com/api/webhooks/", f"123456789012345678/{_WORD}", ""),
        "Stripe": ("sk_live_", _WORD[:24], ""),
        "Twilio": ("SK", _HEX[:32], ""),
        "SendGrid": ("SG.", f"{_WORD[:22]}.{_WORD}", ""),
        "Mailgun": ("key-", _HEX[:32], ""),
        "Hugging Face": ("hf_", _WORD[:34], ""),
        "Groq": ("gsk_", _WORD, ""),
        "xAI": ("xai-", _WORD, ""),
        "Perplexity": ("pplx-", _WORD, ""),
        "Replicate": ("r8_", _WORD[:37], ""),
        "Tavily": ("tvly-", f"dev-{_WORD}", ""),
        "npm": ("npm_", _WORD[:36], ""),
        "PyPI": ("pypi-", f"AgEI{_WORD}{_WORD}", ""),
        "Docker": ("dckr_pat_", _WORD[:27], ""),
        "DigitalOcean": ("dop_v1_", _HEX, ""),
        "Shopify": ("shpat_", _HEX[:32], ""),
        "Databricks": ("dapi", _HEX[:32], ""),
        "HashiCorp Vault": ("hvs.", _WORD, ""),
        "Linear": ("lin_api_", _WORD, ""),
        "Notion": ("ntn_", _WORD, ""),
        "Grafana": ("glsa_", f"{_WORD[:32]}_{_HEX[:8]}", ""),
        "Atlassian": ("ATATT3", f"xFfGF0{_WORD}{_WORD}", ""),
        "Figma": ("figd_", _WORD, ""),
        "PlanetScale": ("pscale_tkn_", _WORD, ""),
        "New Relic": ("NRAK-", _BIG[:27], ""),
        "age": ("AGE-SECRET-KEY-1", _BIG, ""),
        "Telegram": ("123456789:AA", f"F{_WORD[:32]}", ""),
        "Discord": ("", f"M{_WORD[:23]}.{_WORD[:6]}.{_WORD[:27]}", ""),
        "JWT": ("eyJ", f"{_WORD}.{_WORD}.{_WORD}", ""),
        "private key": ("-----BEGIN RSA PRIVATE KEY-----\n", f"{_WORD}\n{_WORD}\n", "-----END RSA PRIVATE KEY-----"),
        "URL password": ("redis://:", "s3cr3t-Pw", "@cache.example/0"),
        "Authorization header": ("Authorization: Digest ", f"{_WORD}x", ""),
        "Bearer": ("bearer ", _HEX[:40], ""),
        "Basic": ("Basic ", "ZnJhbms6aHVudGVyMg", "=="),
        "assigned to a name": ("AccountKey=", f"{_WORD}{_WORD}", "=="),
    }.items()
}
#: What stands behind a name; its shape is that of the last above.
ASSIGNED = [
    ("aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYwJalrXUtnFEM", "wJalrXUtn"),
    ("password=hunter2", "hunter2"),
    ("DB_PASSWORD: 'hunter two'", "hunter"),
    ('{"api_key": "abcd1234"}', "abcd1234"),
    ('{\\"client_secret\\": \\"abcd1234\\"}', "abcd1234"),
    ("x-api-key: 0123abcd", "0123abcd"),
    ("https://api.example/v1?access_token=0123456789abcdef&page=2", "0123456789"),
    ("https://a.blob.example/c?sv=2024&sig=Ab12%2FCd34Ef56Gh78", "Ab12"),
    ("host=h user=u password=p4ss dbname=d", "p4ss"),
]
