#!/usr/bin/env python3
"""Checks the #include lines of the tree against the table of rooms below (CONTRIBUTING.md says why).

A file includes only files of its own room or of rooms on a lower layer; rooms of one layer never include
each other, however they are built. On top of that: only train/bridge joins libtorch and the kernel API;
base, tokenizer, data and checkpoint stand without libtorch, and so does all that bin/dropless (apps/launcher.cc) is
linked of; src/cuda/device includes nothing outside itself; nobody
but apps includes train/run; files do not include each other in circles. CMake's targets enforce the same
at link time; this check sees headers too and names the line.

usage: check_layers.py [ROOT]        prints file:line: message for each violation; exit code 1 if any
"""

import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """One folder with everything below it that is not a room of its own."""

    path: str
    layer: int
    torch: bool = False  # may include libtorch
    kernels: bool = False  # may include the kernel API, beyond BASIC_HEADERS
    sees: tuple = ()  # the only rooms it may include; empty: every lower layer


LIBRARY = ("include/dropless",)
# Everybody speaks these; the other public headers are the kernel API.
BASIC_HEADERS = {f"include/dropless/{stem}.h" for stem in ("version", "error", "dtype", "view", "backend")}

ROOMS = (
    # The kernel library: C++20 and CUDA, nothing else.
    Room("include/dropless", 1, kernels=True),
    Room("src/cuda/device", 1, sees=("src/cuda/device",)),
    Room("src/common", 2, kernels=True, sees=LIBRARY),
    Room("src/cpu", 3, kernels=True, sees=LIBRARY + ("src/common",)),
    Room("src/cuda", 3, kernels=True, sees=LIBRARY + ("src/common", "src/cuda/device")),
    Room("src/ops", 4, kernels=True, sees=LIBRARY + ("src/common", "src/cpu", "src/cuda")),
    # The training system. It sees the library through its public headers only.
    Room("train/base", 2, sees=LIBRARY),
    Room("train/tokenizer", 3, sees=LIBRARY + ("train/base",)),
    Room("train/bridge", 2, torch=True, kernels=True, sees=LIBRARY),
    Room("train/data", 4, sees=LIBRARY + ("train/base", "train/tokenizer")),
    Room("train/dist", 3, torch=True, sees=LIBRARY + ("train/base", "train/bridge")),
    Room("train/nn", 4, torch=True, sees=LIBRARY + ("train/base", "train/bridge", "train/dist")),
    Room("train/optim", 4, torch=True, sees=LIBRARY + ("train/base", "train/bridge", "train/dist")),
    Room("train/checkpoint", 4, sees=LIBRARY + ("train/base",)),
    Room("train/report", 5, sees=LIBRARY + ("train/base", "train/checkpoint")),
    Room(
        "train/convert",
        5,
        torch=True,
        sees=LIBRARY + tuple(f"train/{room}" for room in ("base", "bridge", "nn", "checkpoint")),
    ),
    Room("train/chat", 3, sees=LIBRARY + ("train/base",)),
    Room("train/icl", 5, sees=LIBRARY + ("train/base", "train/tokenizer")),
    Room(
        "train/run",
        6,
        torch=True,
        sees=LIBRARY
        + tuple(
            f"train/{room}"
            for room in ("base", "bridge", "tokenizer", "data", "dist", "nn", "optim", "checkpoint", "convert", "icl", "report")
        ),
    ),
    Room("apps", 7, torch=True),
    # Users of the whole: nothing includes them.
    Room("python", 2, torch=True, kernels=True, sees=LIBRARY),
    Room("examples", 7, torch=True, kernels=True),
    Room("tests/ops", 7, kernels=True, sees=LIBRARY + ("src/common", "src/cpu", "src/cuda", "src/ops")),
    Room("tests", 8, torch=True, kernels=True),  # tests/cuda runs the cases of tests/ops
    Room("benchmarks", 9, torch=True, kernels=True),  # they share the tests' GPU support
)
PLAIN_PROGRAM = "apps/launcher.cc"
# With dropless_plain_verbs (apps/CMakeLists.txt).
PLAIN_SOURCES = ("launcher", "command", "output", "report", "train_options", "data*", "bench_data*")
BY_LONGEST_PATH = sorted(ROOMS, key=lambda room: -len(room.path))
SOURCE_FOLDERS = ("include", "src", "train", "apps", "python", "examples", "benchmarks", "tests")
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
TORCH = re.compile(r"(torch|ATen|c10)/")
INCLUDE = re.compile(r'\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def room_of(path):
    for room in BY_LONGEST_PATH:
        if path.startswith(room.path + "/"):
            return room
    return None


def resolve(name, room, quoted):
    """The path in the repository that a project include names, or None for any other header."""
    if quoted and room.path == "src/cuda/device" and "/" not in name:
        return f"{room.path}/{name}"  # device headers name each other bare: the folder stands alone
    if name.startswith("dropless/"):
        return "include/" + name
    if name.split("/")[0] in SOURCE_FOLDERS:
        return name
    return None


def read_includes(path):
    """(line number, name, quoted) of each #include."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1) or match.group(2), match.group(1) is not None


def check_edge(source, room, target):
    """The message for `source` (in `room`) including the project file `target`, or None."""
    other = room_of(target)
    if other is None:
        return f"{target} is in no room that check_layers.py knows"
    if other != room:
        if other.path == "train/run" and room.layer < 7:
            return "only apps (and tests) include train/run"
        if room.path == "src/cuda/device":
            return f"src/cuda/device includes nothing outside itself, but includes {target}"
        if {room.path, other.path} == {"src/cpu", "src/cuda"}:
            return f"cpu and cuda do not know each other, but {source} includes {target}"
        if other.layer > room.layer:
            return f"{room.path} (layer {room.layer}) includes upward: {other.path} is layer {other.layer}"
        if other.layer == room.layer:
            return f"siblings never include each other: {room.path} and {other.path} are both layer {room.layer}"
        if room.sees and other.path not in room.sees:
            return f"{room.path} may include only {', '.join(room.sees)}, but includes {target}"
    if other.path == "include/dropless" and not room.kernels and target not in BASIC_HEADERS:
        if room.path != "apps":
            return f"kernels are reached through train/bridge, but {room.path} includes {target}"
    return None


def check_file(root, path):
    """(violations, {project file: line}, line of the first libtorch header or None) of one file."""
    source = path.relative_to(root).as_posix()
    room = room_of(source)
    if room is None:
        return [f"{source}:1: {source} is in no room that check_layers.py knows"], {}, None
    violations, targets, torch_line, kernel_line = [], {}, None, None
    for line, name, quoted in read_includes(path):
        target = resolve(name, room, quoted)
        if target is None:
            if TORCH.match(name):
                torch_line = torch_line or line
                if not room.torch:
                    violations.append(f"{source}:{line}: {room.path} stands without libtorch, but includes <{name}>")
            elif quoted:
                violations.append(
                    f'{source}:{line}: "{name}" is no path from the repository\'s root; '
                    "write it in full, or <...> for other people's headers"
                )
            elif room.path == "src/cuda/device" and "/" in name and not name.startswith("cuda/"):
                violations.append(f"{source}:{line}: src/cuda/device includes nothing outside itself, but <{name}>")
            continue
        if not (root / target).is_file():
            violations.append(f"{source}:{line}: {target} does not exist")
            continue
        targets[target] = line
        message = check_edge(source, room, target)
        if message:
            violations.append(f"{source}:{line}: {message}")
        elif target.startswith("include/") and target not in BASIC_HEADERS:
            kernel_line = line
    if room.path == "apps" and torch_line and kernel_line:
        violations.append(f"{source}:{kernel_line}: only train/bridge includes both libtorch and the kernel API")
    return violations, targets, torch_line


def check_plain_program(graph, torch_lines):
    """Violations of the program that runs before libtorch is loaded: it includes none, and nor does what it includes or
    the sources beside those headers, which it is linked of."""
    violations, seen = [], set()
    waiting = [file for file in graph for stem in PLAIN_SOURCES if fnmatch(file, f"apps/{stem}.cc")]
    while waiting:
        file = waiting.pop()
        if file in seen or file not in graph:
            continue
        seen.add(file)
        if file in torch_lines:
            violations.append(f"{file}:{torch_lines[file]}: {PLAIN_PROGRAM} is linked of this and stands without libtorch")
        waiting += [*graph[file], re.sub(r"\.h$", ".cc", file)]
    return sorted(violations)


def find_cycles(graph):
    """Each circle of includes once, as a list of files that starts with its smallest name."""
    cycles, done, stack = [], set(), []

    def visit(file):
        if file in stack:
            cycle = stack[stack.index(file) :]
            first = cycle.index(min(cycle))
            cycles.append(cycle[first:] + cycle[:first])
            return
        if file in done:
            return
        stack.append(file)
        for target in sorted(graph.get(file, {})):
            visit(target)
        stack.pop()
        done.add(file)

    for file in sorted(graph):
        visit(file)
    return cycles


def check_tree(root):
    violations, graph, torch_lines = [], {}, {}
    for folder in SOURCE_FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                found, targets, torch_line = check_file(root, path)
                violations += found
                name = path.relative_to(root).as_posix()
                graph[name] = targets
                if torch_line:
                    torch_lines[name] = torch_line
    violations += check_plain_program(graph, torch_lines)
    for cycle in find_cycles(graph):
        line = graph[cycle[0]][cycle[1 % len(cycle)]]
        violations.append(f"{cycle[0]}:{line}: circle of includes: {' -> '.join(cycle + cycle[:1])}")
    return violations, len(graph)


def main(arguments):
    root = Path(arguments[0] if arguments else Path(__file__).parent.parent).resolve()
    violations, files = check_tree(root)
    for violation in violations:
        print(violation)
    print(f"{files} files, {len(violations)} violations", file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
