"""A user's own module, in a project of its own."""


def module(folder, monkeypatch, name, code):
    """Write a module with `code` into a folder, and go there. Returns the module's name.

    The folder's is a part of it, since Python keeps a module of the same name.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    name = f"{name}_{folder.name}"
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return name
