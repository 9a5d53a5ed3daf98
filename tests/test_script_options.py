"""Options of the scripts: what is refused before a run, and that trying leaves nothing behind."""

import argparse

import pytest
import script_files


@pytest.fixture(scope="module", name="options")
def _options():
    return script_files.load("options")


@pytest.mark.parametrize("text", ["99999999999999999999", "2147483648"])
def test_a_whole_number_that_jax_cannot_hold_is_refused(options, text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number <= 2147483647"):
        options.whole_number(text, least=0)
    assert options.whole_number("2147483647") == 2**31 - 1


def test_to_try_a_new_place_leaves_nothing_behind(options, tmp_path):
    assert options.new_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert options.new_file(str(tmp_path / "a" / "b.json")) == tmp_path / "a" / "b.json"
    assert list(tmp_path.iterdir()) == []


def test_to_try_a_file_leaves_it_as_it_is(options, tmp_path):
    file = tmp_path / "kept"
    file.write_text("kept")
    assert options.new_file(str(file)) == options.old_file(str(file)) == file
    assert file.read_text() == "kept"


@pytest.mark.parametrize("kind", ["new_folder", "new_file"])
@pytest.mark.parametrize("place", [f"{__file__}/deeper", "/proc/x", "x" * 999])
def test_where_nothing_can_be_made_is_refused(options, kind, place):
    with pytest.raises(argparse.ArgumentTypeError, match=f"can be written; got {place}: [A-Z]"):
        getattr(options, kind)(place)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("new_folder", "must be a folder that can be written"),
        ("new_file", "must be a file that can be written"),
        ("old_file", "must be a file that is there and can be written"),
    ],
)
def test_a_folder_is_no_file_and_a_file_no_folder(options, kind, message, tmp_path):
    place = __file__ if kind == "new_folder" else str(tmp_path)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        getattr(options, kind)(place)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("bench", ["--json", "/proc/x.json"], "--json: must be a file that can be written"),
        ("bench", ["--figure", "/proc/x.png"], "--figure: must be a file that can be written"),
        ("bench", ["--figure", "x.txt"], "--figure must end in one of .png, .svg, .pdf; got x.txt"),
        ("bench", ["--repeats", "0"], "--repeats: must be a whole number >= 1; got 0"),
        ("bench", ["--repeats", "-1"], "--repeats: must be a whole number >= 1; got -1"),
        ("bench", ["foo"], "unknown benchmarks ['foo']; there are step, stacks,"),
        ("train", ["--seed", "9" * 20], "--seed: must be a whole number <= 2147483647"),
        ("train", ["--out", "/proc/x"], "--out: must be a folder that can be written"),
        ("sweep", ["--out", "/proc/x"], "--out: must be a folder that can be written"),
        ("experiments", ["--out", "/proc/x"], "--out: must be a folder that can be written"),
        ("tuning", ["--out", "/proc/x"], "--out: must be a folder that can be written"),
        ("notebooks", ["nofile.ipynb"], "nofile.ipynb: No such file or directory"),
    ],
)
def test_what_would_end_a_run_is_refused_before_it(script, arguments, message, capsys):
    if script == "notebooks":
        pytest.importorskip("nbclient")
    with pytest.raises(SystemExit) as caught:
        script_files.load(script).main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "[]" not in error
