"""ONNX files: a single one, or a graph and its weights beside it where protobuf's 2 GiB do not hold both.

A graph in memory may keep large weights outside too: such a tensor then names a file by its whole path, which no
file does. So a network of any size is converted without being loaded.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from ctseg.errors import SpecError
from ctseg.files.digests import sha256_of_files

MAX_ONE_FILE_BYTES = 1_900_000_000
"""Of weights. Protobuf stops at 2 GiB, and the graph itself and folded constants need room."""
_LEAST_OUTSIDE_BYTES = 1024
"""Smaller tensors always stay in the graph: shapes and axes, which whoever checks a graph looks into."""
_ALIGNMENT_BYTES = 4096


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside an ONNX file that hold its weights, in order of their names; none for most.

    Raises:
        SpecError: See :func:`read_graph`.
    """
    return tuple(sorted({_place_of(tensor)[0] for tensor in _checked(path).graph.initializer if is_outside(tensor)}))


def sha256_of_network(path: Path) -> str:
    """Return the SHA-256 of an ONNX file and the weights beside it, see :func:`ctseg.files.digests.sha256_of_files`.

    Raises:
        SpecError: See :func:`read_graph`.
    """
    return sha256_of_files((path, *data_files(path)))


def read_graph(path: Path) -> Any:
    """Read an ONNX file; large weights that lie outside stay there.

    What it says about files is not trusted: weights are taken from plain files in its own folder only.

    Args:
        path: The ONNX file.

    Returns:
        ``onnx.ModelProto``; see :func:`values_of` for its tensors.

    Raises:
        SpecError: It is no ONNX file; or a data file is missing, too short, or not a file in the same folder.
    """
    graph = _checked(path)
    small = [item for item in graph.graph.initializer if is_outside(item) and byte_count(item) < _LEAST_OUTSIDE_BYTES]
    for tensor in small:
        tensor.CopyFrom(_inside(tensor))
    return graph


def write_graph(graph: Any, path: Path, *, one_file_bytes: int = MAX_ONE_FILE_BYTES) -> None:
    """Write an ONNX file, with its weights beside it as ``<name>.data`` if they are too large for one.

    Args:
        graph: ``onnx.ModelProto``; not changed.
        path: Where; an old file is replaced. Not one that the graph still takes weights from.
        one_file_bytes: Weights from which on they lie outside.

    Raises:
        OSError: It cannot be written.
    """
    import onnx

    tensors = graph.graph.initializer
    beside = _beside(path)
    if beside.absolute() in {_place_of(tensor)[0] for tensor in tensors if is_outside(tensor)}:
        raise ValueError(f"{beside} holds weights of the graph that would replace it")
    beside.unlink(missing_ok=True)
    if weight_bytes(graph) < one_file_bytes:
        if any(map(is_outside, tensors)):
            graph = _with_initializers(graph, [_inside(tensor) for tensor in tensors])
        onnx.save(graph, path)
        return
    with DataFile(beside) as data:
        written = [
            data.add(tensor) if byte_count(tensor) >= _LEAST_OUTSIDE_BYTES else _inside(tensor) for tensor in tensors
        ]
    for tensor in written:
        if is_outside(tensor):
            _set_place(tensor, beside.name, *_place_of(tensor)[1:])
    onnx.save(_with_initializers(graph, written), path)


def remove_graph(path: Path) -> None:
    """Remove an ONNX file that :func:`write_graph` wrote, and its weights beside it."""
    for file in (path, _beside(path)):
        file.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


class DataFile:
    """A new file of weights, for tensors that lie outside.

    Args:
        path: Where; there is no such file yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._file = path.open("xb")

    def __enter__(self) -> "DataFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, tensor: Any) -> Any:
        """Append the values of a tensor, which may lie outside itself, and return one that names their place here."""
        return self.add_values(values_of(tensor), tensor.name, tensor.data_type)

    def add_values(self, values: npt.NDArray[Any], name: str, data_type: int) -> Any:
        """Append values, and return a tensor of that name and type that names their place here."""
        import onnx

        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT_BYTES))
        tensor = onnx.TensorProto(name=name, data_type=data_type, dims=values.shape)
        _set_place(tensor, str(self._path), self._file.tell(), values.nbytes)
        np.ascontiguousarray(values).reshape(-1).view(np.uint8).tofile(self._file)
        self._file.flush()
        return tensor


def values_of(tensor: Any) -> npt.NDArray[Any]:
    """Return the values of a tensor of a graph in memory; those that lie outside are mapped, not loaded."""
    import onnx

    if not is_outside(tensor):
        values: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return values
    file, offset, _ = _place_of(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=tuple(tensor.dims))


def without_weights(graph: Any, *, of_any_place: bool = False) -> tuple[Any, dict[str, Any]]:
    """Return a graph that takes the weights that lie outside as inputs, behind its own, and those weights by name.

    Tools that know graphs of one file only can work on it; :func:`with_weights` gives the weights back.

    Args:
        graph: ``onnx.ModelProto``; not changed.
        of_any_place: Take out large weights in the graph itself, too: tools copy all that they are given.
    """
    import onnx

    def is_taken(tensor: Any) -> bool:
        return is_outside(tensor) or (of_any_place and byte_count(tensor) >= _LEAST_OUTSIDE_BYTES)

    outside = {tensor.name: tensor for tensor in graph.graph.initializer if is_taken(tensor)}
    shell = _with_initializers(graph, [tensor for tensor in graph.graph.initializer if tensor.name not in outside])
    for name, tensor in outside.items():
        shell.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return shell, outside


def with_weights(shell: Any, outside: dict[str, Any]) -> Any:
    """Return a graph of :func:`without_weights` with those of its weights that it still uses."""
    used = {name for node in shell.graph.node for name in node.input}
    weights = [tensor for name, tensor in outside.items() if name in used]
    graph = _with_initializers(shell, [*shell.graph.initializer, *weights])
    for value in [value for value in graph.graph.input if value.name in outside]:
        graph.graph.input.remove(value)
    return graph


def weight_bytes(graph: Any) -> int:
    """Return how many bytes the weights of a graph in memory have, wherever they lie."""
    return sum(map(byte_count, graph.graph.initializer))


def byte_count(tensor: Any) -> int:
    """Return how many bytes the values of a tensor have."""
    import onnx

    return int(prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def is_outside(tensor: Any) -> bool:
    """Whether the values of a tensor lie in another file."""
    import onnx

    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _inside(tensor: Any) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(np.array(values_of(tensor)), tensor.name) if is_outside(tensor) else tensor


def _with_initializers(model: Any, initializers: Sequence[Any]) -> Any:
    """Return a copy of a graph with other initializers; its own are not copied, which would double the memory."""
    import onnx

    copy = onnx.ModelProto()
    for source, target, left_out in ((model, copy, "graph"), (model.graph, copy.graph, "initializer")):
        for field, value in source.ListFields():
            if field.name == left_out:
                continue
            if hasattr(value, "extend"):
                getattr(target, field.name).extend(value)
            elif hasattr(value, "CopyFrom"):
                getattr(target, field.name).CopyFrom(value)
            else:
                setattr(target, field.name, value)
    copy.graph.initializer.extend(initializers)
    return copy


def _place_of(tensor: Any) -> tuple[Path, int, int]:
    """Return where values lie outside: file, and offset and length in bytes."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    return Path(said["location"]), int(said["offset"]), int(said["length"])


def _set_place(tensor: Any, location: str, offset: int, length: int) -> None:
    import onnx

    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _checked(path: Path) -> Any:
    """Read an ONNX file without its weights; each that lies outside names its file by the whole path."""
    import onnx

    try:
        graph = onnx.load(path, format="protobuf", load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise SpecError(f"{path}: not an ONNX file: {error}") from error
    for tensor in _other_tensors(graph):
        if is_outside(tensor):
            raise SpecError(f"{path}: {tensor.name} is no weight, and lies in another file: export again")
    for tensor in graph.graph.initializer:
        if any(size < 0 for size in tensor.dims):
            raise SpecError(f"{path}: {tensor.name} has the shape {tuple(tensor.dims)}: do not use this file")
        if is_outside(tensor):
            _find_data(tensor, path)
    return graph


def _other_tensors(model: Any) -> Iterator[Any]:
    """Yield all tensors of a model that are not its weights: those of nodes, of the graphs in them, of functions."""
    yield from _tensors_of_sparse(model.graph.sparse_initializer)
    for graph in (model.graph, *model.functions):
        yield from _tensors_of_nodes(graph)


def _tensors_of_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from _tensors_of_sparse((attribute.sparse_tensor, *attribute.sparse_tensors))
            for inner in (attribute.g, *attribute.graphs):
                yield from inner.initializer
                yield from _tensors_of_sparse(inner.sparse_initializer)
                yield from _tensors_of_nodes(inner)


def _tensors_of_sparse(tensors: Iterable[Any]) -> Iterator[Any]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


def _find_data(tensor: Any, path: Path) -> None:
    """Check where a tensor says that its values lie, and let it name that file by its whole path."""
    import onnx

    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    if not location or location == ".." or Path(location).name != location or "\\" in location:
        raise SpecError(
            f"{path}: {tensor.name} lies in {location!r}, expected the name of a file beside it: do not use this file"
        )
    if tensor.data_type == onnx.TensorProto.STRING:
        raise SpecError(f"{path}: {tensor.name} in {location} is of text, expected numbers: do not use this file")
    file = path.absolute().with_name(location)
    if file.is_symlink() or not file.is_file():
        raise SpecError(
            f"{path}: its weights lie in {location}, which is no file beside it: copy both, or export again"
        )
    try:
        needed = byte_count(tensor)
        offset, length = int(said.get("offset", 0)), int(said.get("length", needed))
    except (ValueError, KeyError) as error:
        raise SpecError(
            f"{path}: {tensor.name}: its type, or its place in {location}, is no number: {error}"
        ) from error
    size = file.stat().st_size
    if offset < 0 or length != needed or offset + length > size:
        raise SpecError(
            f"{path}: {tensor.name} of {needed} bytes is bytes {offset} to {offset + length} of {location}, which has "
            f"{size}: it is cut off, or of another network: copy both files, or export again"
        )
    _set_place(tensor, str(file), offset, length)
