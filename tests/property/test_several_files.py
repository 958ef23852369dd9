"""A policy is the same however it is cut into files, and so is what is said about it."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.config import Report, check_text, check_texts

names = st.sampled_from(["a", "b", "c"])
listeners = st.dictionaries(
    names, st.fixed_dictionaries({"address": st.sampled_from(["127.0.0.1:1", "127.0.0.1:2", "x"])})
)
routes = st.lists(
    st.fixed_dictionaries(
        {"name": names, "backendRefs": st.lists(st.fixed_dictionaries({"name": names}), min_size=1)}
    ),
    max_size=4,
)
backends = st.dictionaries(
    names, st.fixed_dictionaries({"endpoints": st.just(["127.0.0.1:9"]) | st.just([])})
)
policies = st.fixed_dictionaries({"listeners": listeners, "routes": routes, "backends": backends})


def said(report: Report) -> list[tuple[str, str]]:
    """Everything but the places."""
    problems = (*report.errors, *report.warnings, *report.notes)
    return sorted((problem.message, problem.hint) for problem in problems)


def dumped(policy: dict[str, Any]) -> str:
    return json.dumps(policy, indent=1)


@settings(max_examples=60)
@given(policies, st.data())
def test_cut_into_files(policy: dict[str, Any], data: st.DataObject) -> None:
    """Each section is cut in three, the order of its entries kept."""
    files: list[dict[str, Any]] = [{}, {}, {}]
    for section, entries in policy.items():
        items = list(entries.items()) if isinstance(entries, dict) else entries
        cuts = sorted(data.draw(st.tuples(*[st.integers(0, len(items))] * 2)))
        for at, (start, end) in enumerate(zip([0, *cuts], [*cuts, None], strict=True)):
            if part := items[start:end]:
                files[at][section] = dict(part) if isinstance(entries, dict) else part
    whole = {section: policy[section] for section in policy if policy[section]}
    texts = [(f"d/{at}.yaml", dumped(file)) for at, file in enumerate(files) if file]
    if not texts:
        return
    one, many = check_text(dumped(whole)), check_texts(texts, "d")
    assert said(one) == said(many)
    assert (one.policy is None) == (many.policy is None)
    if one.policy is not None and many.policy is not None:
        assert [route.name for route in one.policy.routes] == [
            route.name for route in many.policy.routes
        ]
        assert set(one.policy.listeners) == set(many.policy.listeners)
        assert set(one.policy.backends) == set(many.policy.backends)
    for problem in (*many.errors, *many.warnings):
        location = problem.place.location
        text = dict(texts).get(location.file)
        if text is None:
            assert (location.file, problem.place.text) == ("d", "")
        else:
            assert text.split("\n")[location.line - 1] == problem.place.text


@given(st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_any_texts(texts: list[str]) -> None:
    report = check_texts([(f"d/{at}.yaml", text) for at, text in enumerate(texts)], "d")
    assert (report.policy is None) == bool(report.errors)
    assert not re.search("[\x00-\x08]", report.render())
