"""Hooks of the documentation site: pages and links that MkDocs does not find under docs/.

Each room of the package becomes one page of the API part of the navigation, so that a moved module
needs no change here. CONTRIBUTING.md and CHANGELOG.md become pages. The result files of the
benchmarks and the JSON Schema of record.json are copied, so that links to them work without the
repository.
"""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_nowcast"
PAGES = {"CONTRIBUTING.md": "Contributing", "CHANGELOG.md": "Changelog"}
RESULTS = "benchmarks/results"
JSON_SCHEMA = "keras_nowcast/record.schema.json"


def on_config(config):
    """Appends the pages of the API and of PAGES to the navigation."""
    api = [{name: f"api/{name}.md"} for name in rooms()]
    there = [name for name in PAGES if (ROOT / name).is_file()]
    config.nav += [{"API": api}, *({PAGES[name]: name} for name in there)]
    return config


def on_files(files, config):
    """Adds the generated pages and the files that pages link to."""
    for name, modules in rooms().items():
        files.append(File.generated(config, f"api/{name}.md", content=api_page(name, modules)))
    for name in PAGES:
        if (ROOT / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in [ROOT / JSON_SCHEMA, *sorted((ROOT / RESULTS).rglob("*"))]:
        if path.suffix in (".txt", ".json", ".md"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links that are written for the repository: the site has docs/ as its root."""
    if page.file.src_uri in PAGES:
        return re.sub(r"\]\(docs/", "](", markdown).replace("](README.md)", "](index.md)")
    markdown = markdown.replace("](../README.md)", "](index.md)")
    return re.sub(
        r"\]\(\.\./(?=(benchmarks/results/|keras_nowcast/record.schema|CONTRIBUTING|CHANGELOG))",
        "](",
        markdown,
    )


def rooms():
    """Returns {room: its modules' dotted names}; modules in no folder are of the room `ground`."""
    found = {"ground": []}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem == "__init__" and not documented(path):
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        room = parts[1] if len(parts) > 2 else "ground"
        found.setdefault(room, []).append(name)
    return found


def documented(path):
    """Returns True if the module at `path` has a docstring."""
    return ast.get_docstring(ast.parse(path.read_text())) is not None


def api_page(room, modules):
    """Returns the Markdown of a room's page."""
    title = "Ground floor" if room == "ground" else room.capitalize()
    return "\n\n".join([f"# {title}", *map(entry, modules)]) + "\n"


def entry(module):
    """Returns the lines from which mkdocstrings makes the text of a module."""
    if (ROOT / module.replace(".", "/")).is_dir():
        # What a package re-exports is listed in its own module.
        return f"::: {module}\n    options:\n      members: false"
    return f"::: {module}"
