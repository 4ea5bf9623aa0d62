"""Which commit a result came from, and whether it was that commit."""

import subprocess

from jaxtrader import provenance


def test_dirty_is_changed_or_unknown_code_and_not_what_runs_leave_behind(tmp_path, monkeypatch):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "jaxtrader"
    package.mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    commit = provenance.git_commit.__wrapped__
    assert commit() is None  # not a checkout
    (package / "code.py").write_text("1")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    clean = git("rev-parse", "HEAD")
    assert commit() == clean
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text("{}")
    assert commit() == clean
    (package / "new.py").write_text("2")
    assert commit() == f"{clean}+dirty"
    (package / "new.py").unlink()
    (package / "code.py").write_text("3")
    assert commit() == f"{clean}+dirty"
