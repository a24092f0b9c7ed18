"""A training step's graph as TensorFlow would run it on a GPU, optimized without one.

TensorFlow is imported in the functions.
"""

import collections

CAPABILITIES = ("7.0", "8.0", "9.0")
GPU = "/job:localhost/replica:0/task:0/device:GPU:0"
CPU = "/job:localhost/replica:0/task:0/device:CPU:0"

# Operations that launch nothing: constants, names of other tensors, and shapes, which the host
# knows without the device.
NO_WORK = frozenset(
    "Const Placeholder _Arg _Retval NoOp Identity IdentityN Reshape Squeeze ExpandDims "
    "StopGradient PreventGradient VarHandleOp ReadVariableOp Shape ShapeN Size Rank "
    "BroadcastGradientArgs HostConst ControlTrigger Merge Switch _SwitchN".split()
)
# They run functions, whose operations are counted instead.
CALLS = frozenset("StatefulPartitionedCall PartitionedCall If StatelessIf".split())


def optimized(function, capability):
    """Returns the GraphDef of a ConcreteFunction after Grappler, for one GPU.

    Args:
      function: a ConcreteFunction.
      capability: compute capability of the made-up GPU, such as "9.0".
    """
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.eager import context
    from tensorflow.python.grappler import cluster, tf_optimizer
    from tensorflow.python.training.saver import export_meta_graph

    graph_def = function.graph.as_graph_def(add_shapes=True)
    for node in graph_def.node:
        node.device = GPU
    for each in graph_def.library.function:
        for node in each.node_def:
            node.device = GPU
    meta = export_meta_graph(graph_def=graph_def, graph=function.graph)
    kept = [each.op.name for each in function.graph.outputs]
    kept += [each.name for each in function.graph.control_outputs]
    fetched = meta_graph_pb2.CollectionDef()
    fetched.node_list.value.extend(dict.fromkeys(kept))
    meta.collection_def["train_op"].CopyFrom(fetched)
    session = config_pb2.ConfigProto()
    session.CopyFrom(context.context().config)  # what tf.config.optimizer has set
    session.graph_options.rewrite_options.min_graph_nodes = -1
    devices = cluster.Cluster(devices=[_gpu(capability), _cpu()])
    return tf_optimizer.OptimizeGraph(session, meta, verbose=False, cluster=devices)


def _gpu(capability):
    from tensorflow.core.protobuf import device_properties_pb2 as proto

    properties = proto.DeviceProperties(
        type="GPU",
        vendor="NVIDIA",
        frequency=1700,
        num_cores=108,
        memory_size=64 << 30,
        bandwidth=2_000_000_000,
        environment={"architecture": capability, "cuda": "12050", "cudnn": "90300"},
    )
    return proto.NamedDevice(name=GPU, properties=properties)


def _cpu():
    from tensorflow.core.protobuf import device_properties_pb2 as proto

    properties = proto.DeviceProperties(type="CPU", frequency=2000, num_cores=16)
    return proto.NamedDevice(name=CPU, properties=properties)


def all_nodes(graph):
    """Returns the nodes of a GraphDef and of the functions that it calls, each once."""
    library = {each.signature.name: each for each in graph.library.function}
    nodes, waiting, seen = [], [graph.node], set()
    while waiting:
        for node in waiting.pop():
            nodes.append(node)
            for value in node.attr.values():
                for name in [value.func.name, *(each.name for each in value.list.func)]:
                    if name in library and name not in seen:
                        seen.add(name)
                        waiting.append(library[name].node_def)
    return nodes


def working(graph):
    """Returns the nodes of a GraphDef that launch work on a device, or do work on the host."""
    return [each for each in all_nodes(graph) if each.op not in NO_WORK | CALLS]


def host_operations(nodes):
    """Returns {kind: number} of the nodes that have no kernel on a GPU, so that the host runs them.

    Right only under the CUDA build; others have no kernels for a GPU at all.
    """
    from tensorflow.python.framework import kernels, op_def_registry

    known = {}
    found = collections.Counter()
    for node in nodes:
        if node.op not in known:
            kernel_list = kernels.get_registered_kernels_for_op(node.op).kernel
            known[node.op] = [each for each in kernel_list if each.device_type == "GPU"]
        outputs = {each.name for each in op_def_registry.get(node.op).output_arg}
        if not any(_fits(each, node, outputs) for each in known[node.op]):
            found[node.op] += 1
    return dict(found)


def _fits(kernel, node, outputs):
    """True if the types of a node are those of a kernel, and the kernel works on the device."""
    if outputs & set(kernel.host_memory_arg):
        return False  # int32 kernels that run on the host under a GPU's name
    for constraint in kernel.constraint:
        attribute = node.attr[constraint.name]
        kinds = attribute.list.type or [attribute.type]
        if not set(kinds) <= set(constraint.allowed_values.list.type):
            return False
    return True


def predicates(nodes):
    """Returns the number of nodes whose predicate the host must read before it can launch more."""
    return sum(each.op in ("If", "StatelessIf", "Switch", "_SwitchN", "While") for each in nodes)


def summary(graph):
    """Returns the row of a graph: numbers of operations, by what they cost."""
    nodes = working(graph)
    kinds = collections.Counter(each.op for each in nodes)
    formats = collections.Counter(
        each.attr["data_format"].s.decode() for each in nodes if each.op.startswith("Conv2D")
    )
    called = all_nodes(graph)
    return {
        "operations": len(nodes),
        "most_frequent": " ".join(f"{kind}:{count}" for kind, count in kinds.most_common(6)),
        "adam_raw": kinds["ResourceApplyAdam"],
        "pow_sqrt": kinds["Pow"] + kinds["Sqrt"],
        "is_finite": kinds["IsFinite"],
        "convolutions": "+".join(f"{formats[each]} {each}" for each in sorted(formats)),
        "transposes": kinds["Transpose"],
        "batch_norms": kinds["FusedBatchNormV3"],
        "batch_norms_with_relu": kinds["_FusedBatchNormEx"],
        "predicates": predicates(called),
        "host": " ".join(f"{k}:{n}" for k, n in sorted(host_operations(nodes).items())) or "none",
    }
