"""`netspace zoo export`: a member of a zoo as a file."""

from __future__ import annotations

from pathlib import Path

from netspace.commands.morph_sample import check_network_file, write_onnx
from netspace.io import write_tensors
from netspace.networks.state_dict import folded_metadata
from netspace.results.zoos import MemberFile
from netspace.zoo import Zoo


def export(path: Path, member: str, out: Path, batch_norm: bool = False) -> MemberFile:
    """Write a member of a zoo to the file `out`, which must not exist: a state dict (safetensors), or ONNX.

    Args:
        path: The zoo.
        member: As `Zoo.find` takes it: 'resnet8/0007', 'best', 'worst:resnet8'.
        out: The file; its suffix says the format.
        batch_norm: Keep batch norm, as the identity but for a bias, so that the state dict loads into the class that was
            trained. Else it is folded into the layers, as the zoo stores it.

    Raises:
        UsageError: no such member, another suffix, or a file that exists.
        NetspaceError: the member diverged, its architecture makes other networks, or packages for ONNX are missing.

    >>> export(zoo, "best", folder / "net.safetensors").parameters
    1477
    """
    check_network_file(out)
    with Zoo(path) as zoo:
        found = zoo[member]
        module = found.module(batch_norm=batch_norm)
        spec = found.spec
    if out.suffix == ".onnx":
        write_onnx(out, module, spec.input_shape)
    else:
        state = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
        write_tensors(out, state, **folded_metadata(spec, folded=not batch_norm), zoo=str(path), member=str(found))
    return MemberFile(
        zoo=str(path),
        member=str(found),
        arch=spec.arch,
        settings=spec.settings,
        parameters=spec.num_parameters,
        input_shape=list(spec.input_shape),
        batch_norm=batch_norm,
        accuracy_test=found.accuracy,
        file=str(out),
    )
