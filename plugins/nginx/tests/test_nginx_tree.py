"""The copy of the configuration for ``nginx -t``: staged files in, removed ones out, includes followed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_agent import CheckError, Staged, StagedFile
from tests.unit.agent.support import nginx_module, plugin_packages, write_tree


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with plugin_packages(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def copy(folder: Path, files: dict[str, str], staged: dict[str, str], removed: tuple[str, ...] = ()) -> Any:
    """Lay out ``files`` below etc/, stage others, and copy; returns the tree."""
    tree = nginx_module("tree")

    etc = folder / "etc"
    write_tree(etc, files)
    (folder / "out").mkdir()
    entries = []
    for number, (dest, text) in enumerate(staged.items()):
        path = folder / f"staged-{number}"
        path.write_text(text)
        entries.append(StagedFile(str(etc / dest), str(path), True))
    return tree.copy_tree(
        str(etc / "nginx.conf"),
        Staged(str(folder), tuple(entries), tuple(str(etc / dest) for dest in removed)),
        str(folder / "out"),
    )


def flat(tree: Any, path: str | None = None) -> str:
    """The configuration as nginx reads it: includes of the copies replaced by their text."""
    includes = nginx_module("tree").includes

    text = Path(path or tree.main).read_text()
    for start, end, pattern in reversed(list(includes(text))):
        text = text[:start] + flat(tree, pattern) + text[end:]
    return " ".join(text.split())


def test_staged_files_take_part_and_removed_ones_do_not(tmp_path: Path) -> None:
    files = {
        "nginx.conf": "a; include conf.d/*.conf; include one.conf; z;",
        "conf.d/1.conf": "one-old;",
        "conf.d/2.conf": "two;",
        "conf.d/4.conf": "four;",
        "conf.d/.hidden.conf": "hidden;",
        "conf.d/5.txt": "text;",
        "one.conf": "plain;",
    }
    tree = copy(tmp_path, files, {"conf.d/1.conf": "one-new;", "conf.d/3.conf": "three;"}, ("conf.d/4.conf",))
    assert flat(tree) == "a; one-new; two; three; plain; z;"
    assert (tmp_path / "etc/conf.d/1.conf").read_text() == "one-old;"


def test_nested_quoted_and_absolute_includes_and_comments(tmp_path: Path) -> None:
    files = {
        "nginx.conf": f"""
http {{ # include comment.conf;
    set $x "include 'not.conf';";
    include "{tmp_path}/etc/inner.conf";
    log_format a 'include no.conf;'
      'b';
}}
""",
        "inner.conf": "include sub/x.conf; inner;",
        "sub/x.conf": "x;",
    }
    tree = copy(tmp_path, files, {"sub/x.conf": "new-x;"})
    assert "new-x; inner;" in flat(tree)
    assert "set $x \"include 'not.conf';\";" in flat(tree)


def test_lines_keep_their_numbers_and_messages_their_names(tmp_path: Path) -> None:
    tree = copy(tmp_path, {"nginx.conf": "a;\ninclude\n x.conf;\nb;\n"}, {"x.conf": "x;\n"})
    lines = Path(tree.main).read_text().split("\n")
    assert lines[0] == "a;" and lines[3] == "b;"
    (copied,) = [path for path in tree.originals if path != tree.main]
    assert (
        tree.translate(f'unknown directive "x" in {copied}:1')
        == f'unknown directive "x" in {tmp_path}/etc/x.conf:1'
    )


def test_relative_paths_still_find_other_files(tmp_path: Path) -> None:
    copy(
        tmp_path,
        {"nginx.conf": "include x.conf;", "cert.pem": "pem"},
        {"x.conf": "ssl_certificate cert.pem;"},
    )
    assert (tmp_path / "out/cert.pem").read_text() == "pem"


def test_a_staged_file_that_nothing_includes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckError, match=r"nginx would not read .*/conf.d/x.cnf: nothing includes it, starting from"
    ):
        copy(tmp_path, {"nginx.conf": "include conf.d/*.conf;"}, {"conf.d/x.cnf": "x;"})


def test_a_file_that_includes_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="includes itself"):
        copy(
            tmp_path,
            {"nginx.conf": "include a.conf;", "a.conf": "include b.conf;"},
            {"b.conf": "include a.conf;"},
        )


def test_a_missing_include_is_left_to_nginx(tmp_path: Path) -> None:
    tree = copy(tmp_path, {"nginx.conf": "include x.conf; include gone.conf;"}, {"x.conf": "x;"})
    assert "include gone.conf;" in Path(tree.main).read_text()


def test_no_main_file(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"nginx.conf: cannot be read for the check: No such file"):
        copy(tmp_path, {}, {})
