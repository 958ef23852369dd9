"""Whatever is asked of `explain`: an answer or a line that says why not, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy import cli

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SAMPLES = sorted(str(path) for path in POLICIES.glob("*.yaml"))

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udcff"), max_size=12)
words = st.sampled_from(["GET", "POST", "OPTIONS", "tcp", "tls", "CONNECT", "get", ""]) | texts
urls = st.one_of(
    st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "https", "ftp", ""]),
        st.sampled_from(["a.test", "shop.example.com:8080", "[::1]", "[::1", "", "x:y", "u@h"]),
        st.sampled_from(["", "/", "/a?b#c", "/%zz", "/..%2f", "?", "//x"]) | texts,
    ),
    st.sampled_from(["/", "*", "web", "raw", "/x y", "//"]),
    texts,
)
headers = st.one_of(
    st.builds("{}:{}".format, st.sampled_from(["Host", "X-Forwarded-For", "Upgrade", "a"]), texts),
    st.just("Content-Length: x"),
)


@settings(max_examples=150)
@given(
    st.sampled_from(SAMPLES),
    words.filter(lambda word: not word.startswith("-")),
    urls.filter(lambda url: not url.startswith("-")),
    st.lists(headers, max_size=3),
    st.sampled_from([[], ["--listener", "web"], ["--client", "::1"], ["--sni", "a.test"]]),
)
def test_any_question(sample: str, word: str, url: str, fields: list[str], more: list[str]) -> None:
    arguments = ["explain", sample, word, url, *more, "--json"]
    for field in fields:
        arguments += ["-H", field]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    assert code in (0, 1)
    if code == 0:
        found = json.loads(out.getvalue())
        assert found["action"] in ("forward", "redirect", "respond", "deny", "refuse")
    else:
        assert err.getvalue().startswith("l7proxy: error: ")
