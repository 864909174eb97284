import pickle

from IPython.core.interactiveshell import InteractiveShell

from mac_lora_helpers.errors import CheckFailed, InputError, UserError


def test_what_where_and_fix_are_told():
    assert str(InputError("no file", where="a.jsonl", fix="check the path")) == "no file\n  where: a.jsonl\n  to do: check the path"


def test_exit_codes():
    assert (UserError("x").exit_code, CheckFailed("x").exit_code, InputError("x").exit_code) == (1, 1, 2)


def test_survives_pickling():
    error = pickle.loads(pickle.dumps(InputError("a", where="b", fix="c")))  # noqa: S301
    assert (type(error), error.what, error.where, error.fix) == (InputError, "a", "b", "c")


def test_a_notebook_shows_the_message_and_no_traceback(capsys):
    shell = InteractiveShell.instance()
    shell.run_cell("from mac_lora_helpers.errors import InputError\nraise InputError('no file', where='a.jsonl', fix='check')")
    shown = capsys.readouterr().out
    InteractiveShell.clear_instance()
    assert "InputError: no file" in shown
    assert "to do: check" in shown
    assert "Traceback" not in shown
