"""The reader of golden scripts: arguments, multi-line input, blank lines in output, rewriting."""

from pathlib import Path

import pytest

from tests.golden.datadriven import Command, run

SCRIPT = """# A story.
echo a=1 b=(1,2) c="two words" d e=
input line
----
a=1 b=1,2 c=two words d= e=
input line

echo
----

# A blank line inside.
blank
----
----
one

two
----
----

echo x=1
----
x=1
"""


def handle(command: Command) -> str:
    if command.name == "blank":
        return "one\n\ntwo\n"
    text = " ".join(f"{name}={value}" for name, value in command.arguments.items())
    return text + ("\n" + command.input if command.input else "")


def test_a_right_script_passes_and_rewriting_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text(SCRIPT)
    run(path, handle)
    run(path, handle, rewrite=True)
    assert path.read_text() == SCRIPT


def test_a_wrong_output_is_named_by_its_line_and_rewriting_corrects_it(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text(SCRIPT.replace("----\nx=1", "----\nx=2"))
    with pytest.raises(AssertionError, match=r"script.txt:21: echo"):
        run(path, handle)
    run(path, handle, rewrite=True)
    assert path.read_text() == SCRIPT


@pytest.mark.parametrize("line", ["echo a=(1", 'echo a="b', "echo (a)"])
def test_an_unreadable_argument_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "script.txt"
    path.write_text(f"{line}\n----\n")
    with pytest.raises(ValueError, match=r"script.txt:1: cannot read"):
        run(path, handle)


def test_a_command_without_a_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text("echo\noutput\n")
    with pytest.raises(ValueError, match=r"script.txt:1: no ----"):
        run(path, handle)


def test_typed_arguments() -> None:
    command = Command("here:1", "do", {"n": "3", "list": "1, 2", "flag": "", "off": "false"}, "", "")
    assert (command.number("n"), command.number("m", 4), command.numbers("list")) == (3, 4, (1, 2))
    assert command.flag("flag") and not command.flag("off") and not command.flag("absent")
    with pytest.raises(ValueError, match="here:1: do needs x="):
        command.text("x")
