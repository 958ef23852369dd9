"""Several files that are one policy, and what folders and files can do wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from l7proxy.config import Report, check, check_text, render, sources

LISTENERS = "listeners: {web: {address: 127.0.0.1:8080}}\n"
ROUTES = "routes: [{name: all, backendRefs: [{name: app}]}]\n"
BACKENDS = "backends: {app: {endpoints: [127.0.0.1:9000]}}\n"


def write(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder)


def heads(report: Report, folder: Path) -> list[str]:
    """The first line of each problem and each of its notes, without the folder."""
    lines = report.render().replace(f"{folder}/", "").replace(str(folder), ".").splitlines()
    return [line for line in lines if line[0] not in " "]


def test_three_files(tmp_path: Path) -> None:
    folder = write(tmp_path, a=LISTENERS, b=ROUTES, c=BACKENDS)
    report = check(folder)
    policy = report.policy
    assert policy is not None
    assert policy.source == folder
    assert report.files == tuple(f"{folder}/{name}.yaml" for name in "abc")
    assert str(policy.listeners["web"].location) == f"{folder}/a.yaml:1:13"
    assert str(policy.routes[0].location) == f"{folder}/b.yaml:1:17"
    assert str(policy.backends["app"].location) == f"{folder}/c.yaml:1:12"
    assert report.render() == f"{folder}: ok"


def test_sections_are_put_together_in_the_order_of_names(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        b=ROUTES.replace("all", "second").replace("}]\n", "}]\n") + BACKENDS,
        a=LISTENERS
        + "routes: [{name: first, matches: [{path: /x}], backendRefs: [{name: app}]}]\n",
        c="listeners: {raw: {address: 127.0.0.1:81, protocol: TCP}}\nbackends: {}\n",
    )
    policy = check(folder).policy
    assert policy is not None
    assert [route.name for route in policy.routes] == ["first", "second"]
    assert list(policy.listeners) == ["web", "raw"]
    assert list(policy.backends) == ["app"]


def test_names_are_unique_across_files_and_both_places_are_told(tmp_path: Path) -> None:
    whole = LISTENERS + ROUTES + BACKENDS
    report = check(write(tmp_path, a=whole, b="\n" + whole.replace("8080", "8081")))
    assert heads(report, tmp_path) == [
        "b.yaml:2:13: error: the key `web` is written twice",
        "a.yaml:1:13: note: first written here",
        "b.yaml:3:17: error: a second route has the name `all`",
        "a.yaml:2:17: note: the first one",
        "b.yaml:4:12: error: the key `app` is written twice",
        "a.yaml:3:12: note: first written here",
        ".: 3 errors",
    ]
    assert "    2 | listeners: {web: {address: 127.0.0.1:8081}}" in report.render()


def test_a_name_that_is_merged_in_does_not_hide_another_file(tmp_path: Path) -> None:
    merging = "listeners: {<<: {web: {address: 127.0.0.1:1}}}\n"
    report = check(write(tmp_path, a=merging + ROUTES, b=LISTENERS + BACKENDS))
    assert heads(report, tmp_path)[0] == "b.yaml:1:13: error: the key `web` is written twice"


def test_all_errors_of_all_files_at_once(tmp_path: Path) -> None:
    report = check(
        write(
            tmp_path,
            a=LISTENERS.replace("8080", "http"),
            b="route: []\nroutes: [{name: all, backendRefs: [{name: apq}]}]\n",
            c=BACKENDS + "colour: red\n",
        )
    )
    assert heads(report, tmp_path) == [
        "a.yaml:1:38: error: the port `http` is no number",
        "b.yaml:1:1: error: unknown key `route` in a policy",
        "b.yaml:2:43: error: no backend has the name `apq`",
        "c.yaml:1:12: note: backend `app`",
        "c.yaml:2:1: error: unknown key `colour` in a policy",
        ".: 4 errors",
    ]


def test_what_the_whole_lacks_is_said_about_the_folder(tmp_path: Path) -> None:
    report = check(write(tmp_path, a=LISTENERS, b=BACKENDS))
    assert heads(report, tmp_path) == [".:1:1: error: a policy needs `routes`", ".: 1 error"]
    assert render(report.errors[0]).count("\n") == 1  # no line of a file is shown


def test_a_section_of_the_wrong_kind(tmp_path: Path) -> None:
    """Nothing is said about what refers to it; what the other files have there is looked at."""
    report = check(
        write(
            tmp_path,
            a="listeners: [web]\n" + ROUTES + BACKENDS,
            b="listeners: {raw: {address: x}}\nroutes: [{name: b, listeners: [web], "
            "backendRefs: [{name: app}]}]\n",
        )
    )
    assert heads(report, tmp_path) == [
        "a.yaml:1:12: error: `listeners` must be a map, and this is a list",
        "b.yaml:1:28: error: `x` has no port",
        ".: 2 errors",
    ]


def test_a_file_that_is_no_map(tmp_path: Path) -> None:
    report = check(write(tmp_path, a=LISTENERS + ROUTES + BACKENDS, b="- x\n"))
    assert heads(report, tmp_path) == [
        "b.yaml:1:1: error: a policy must be a map with `listeners`, `routes`, and this is a list",
        ".: 1 error",
    ]


def test_syntax_errors_of_all_files(tmp_path: Path) -> None:
    report = check(write(tmp_path, a="a: [", b=LISTENERS, c="\n\t- x"))
    assert heads(report, tmp_path) == [
        "a.yaml:1:5: error: a value is expected here",
        "c.yaml:2:1: error: a tab cannot indent a line in YAML",
        ".: 2 errors",
    ]


def test_anchors_end_with_their_file(tmp_path: Path) -> None:
    report = check(
        write(tmp_path, a="listeners: {web: &a {address: 127.0.0.1:1}}\n", b="listeners: {x: *a}\n")
    )
    assert heads(report, tmp_path)[0] == (
        "b.yaml:1:16: error: `*a` refers to an anchor, and no `&a` stands before it"
    )


def test_variables_know_their_file(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        a=LISTENERS + ROUTES,
        b='# x\nbackends: {app: {endpoints: ["127.0.0.1:${P}"]}}\n',
    )
    assert heads(check(folder, {}), tmp_path)[0] == (
        "b.yaml:2:41: error: the variable `P` is not set"
    )
    (variable,) = check(folder, {"P": "80"}).variables
    assert str(variable.place.location) == f"{folder}/b.yaml:2:41"


def test_the_environment_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        LISTENERS.replace("127.0.0.1:8080", '"127.0.0.1:${L7_PORT}"') + ROUTES + BACKENDS
    )
    assert check(str(file)).policy is None
    monkeypatch.setenv("L7_PORT", "80")
    assert check(str(file)).policy is not None


def test_a_file_without_an_end_of_line(tmp_path: Path) -> None:
    report = check(write(tmp_path, a=LISTENERS.strip(), b=ROUTES.strip(), c="backends: {a: 1}"))
    assert heads(report, tmp_path)[0].startswith(
        "b.yaml:1:43: error: no backend has the name `app`"
    )
    assert heads(report, tmp_path)[1].startswith("c.yaml:1:15: error: ")


@pytest.mark.parametrize("text", ["", "# later\n", "---\n", "~\n"])
def test_an_empty_file_may_be_one_that_is_being_written(tmp_path: Path, text: str) -> None:
    report = check(write(tmp_path, a=LISTENERS + ROUTES + BACKENDS, b=text))
    assert heads(report, tmp_path) == ["b.yaml:1:1: error: this file is empty", ".: 1 error"]
    assert report.errors[0].hint == (
        "write a policy into it, or give it a name that does not end with .yaml"
    )


# Which files.


def test_which_files_of_a_folder(tmp_path: Path) -> None:
    """As a ConfigMap is mounted, with a few things beside it."""
    version = tmp_path / "..2026_01_31"
    version.mkdir()
    (version / "a.yaml").write_text(LISTENERS + ROUTES)
    (version / "b.yml").write_text(BACKENDS)
    (tmp_path / "..data").symlink_to("..2026_01_31")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    (tmp_path / "b.yml").symlink_to("..data/b.yml")
    for other in ("README.md", "c.yaml.bak", "c.json", ".hidden.yaml", "yaml"):
        (tmp_path / other).write_text("- no policy")
    (tmp_path / "sub.yaml").mkdir()
    (tmp_path / "sub.yaml" / "c.yaml").write_text("- no policy")
    os.mkfifo(tmp_path / "pipe.yaml")
    report = check(str(tmp_path))
    assert report.render() == f"{tmp_path}: ok"
    assert report.files == (f"{tmp_path}/a.yaml", f"{tmp_path}/b.yml")


def test_a_swap_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files are of the new version, though the first one was read of the old."""
    for version in ("old", "new"):
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        (folder / "a.yaml").write_text(f"# {version}\n")
        (folder / "b.yaml").write_text(f"# {version}\n")
    data = tmp_path / "..data"
    data.symlink_to("..old")
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    add = sources.Texts.add
    swapped = []

    def swap_after_the_first(texts: sources.Texts, name: str) -> None:
        add(texts, name)
        if not swapped:
            swapped.append(name)
            data.unlink()
            data.symlink_to("..new")

    monkeypatch.setattr(sources.Texts, "add", swap_after_the_first)
    assert [text for _, text in sources.read(str(tmp_path)).files] == ["# new\n"] * 2


def test_a_folder_without_a_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    (error,) = check(str(tmp_path)).errors
    assert render(error) == (
        f"{tmp_path}:1:1: error: there is no policy in this folder\n"
        "      = the names of its files end with .yaml or .yml; sub-folders are not looked into"
    )


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILES", 2)
    (error,) = check(write(tmp_path, a="", b="", c="")).errors
    assert error.message == "there are more than 2 policy files in this folder"


def test_the_size_of_all_files_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = "#" * (sources.MAX_BYTES // 2)
    (error,) = check(write(tmp_path, a=half, b=half, c="#")).errors
    assert (
        heads(check(str(tmp_path)), tmp_path)[0] == "c.yaml:1:1: error: a policy has at most 16 MiB"
    )
    assert error.hint == ""


def test_a_link_to_nothing_and_a_wrong_byte(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("nothing")
    (tmp_path / "b.yaml").write_bytes(b"# \xff")
    report = check(str(tmp_path))
    assert heads(report, tmp_path) == [
        "a.yaml:1:1: error: cannot read this file: No such file or directory",
        "b.yaml:1:3: error: the byte 0xff is not UTF-8",
        ".: 2 errors",
    ]
    assert report.files == (f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml")


def test_a_misspelled_name(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("")
    (error,) = check(f"{tmp_path}/polcy.yaml").errors
    assert error.message == "cannot read this file: No such file or directory"
    assert error.hint == f"did you mean `{tmp_path}/policy.yaml`?"
    (error,) = check(f"{tmp_path}/other.yaml").errors  # only the ending is alike
    assert error.hint == ""
    (error,) = check(f"{tmp_path}/policy.yml").errors
    assert error.hint == f"did you mean `{tmp_path}/policy.yaml`?"
    (error,) = check(f"{tmp_path}/no/policy.yaml").errors
    assert error.hint == ""


def no_permission(*_: object) -> object:
    raise PermissionError(13, "Permission denied")


def test_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, a="")
    hint = "run as a user who may read it, or give this one the right to"
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", no_permission)
        (error,) = check(f"{folder}/a.yaml").errors
    assert (error.message, error.hint) == ("cannot read this file: Permission denied", hint)
    monkeypatch.setattr(sources.os, "scandir", no_permission)
    (error,) = check(folder).errors
    assert (error.message, error.hint) == ("cannot read this folder: Permission denied", hint)


def test_what_is_no_regular_file_can_be_given_by_name(tmp_path: Path) -> None:
    """`l7proxy check <(make-policy)`"""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        pipe.write(LISTENERS + ROUTES + BACKENDS)
    try:
        report = check(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
    assert report.policy is not None
    assert report.policy == check_text(LISTENERS + ROUTES + BACKENDS, f"/dev/fd/{reader}").policy
