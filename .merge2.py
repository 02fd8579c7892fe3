exec(open(".merge.py").read().split('resolve("docs/cli.md"')[0])


def arch(i, a, b):
    if i == 1:
        return '        "desk",\n        "events",\n' + b.replace('        "desk",\n', "")
    if i == 2:
        return '        ("taskctl.events", set(), {"vocabulary"}),\n' + b
    if i == 3:
        return '        *(f"taskctl.cli.{name}" for name in ("tasks", "watch", "offline", "account", "login", "doctor")),\n'
    return a + b


resolve("tests/test_architecture.py", arch)
exec('resolve("tests/test_proxies.py"' + open(".merge.py").read().split('resolve("tests/test_proxies.py"')[1])
