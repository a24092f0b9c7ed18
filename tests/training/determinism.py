"""The operations that TensorFlow 2.21 refuses on a GPU while op determinism is on.

Source: the messages of its library, `strings libtensorflow_cc.so.2 | grep -i determinis`;
tests/benchmarks/test_gpu_graph.py compares them where the CUDA build is installed.
"""

REFUSED = frozenset(
    """
    AdjustContrast AdjustContrastv2 Bincount CropAndResizeGradBoxes CropAndResizeGradImage
    DebugNumericSummaryV2 DenseBincount DepthwiseConv2dNativeBackpropFilter
    DepthwiseConvBackpropFilter Dilation2DBackpropFilter Dilation2DBackpropInput
    FakeQuantWithMinMaxVarsGradient FakeQuantWithMinMaxVarsPerChannelGradient
    MaxPoolGradWithArgmax ResizeNearestNeighborGrad SegmentMax SegmentMean SegmentMin SegmentProd
    SegmentSum SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits
    SparseTensorDenseMatMul SparseTensorDenseMatmulOp Svd Timestamp UnsortedSegmentMax
    UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum
    """.split()
)


def refused(operations):
    """Returns the kinds of a graph's operations that TensorFlow would refuse.

    The gradient of fused batch normalization is refused with fixed statistics only.
    """
    kinds = set()
    for each in operations:
        fixed = each.type.startswith("FusedBatchNormGrad") and not each.get_attr("is_training")
        if fixed or each.type in REFUSED or each.type.startswith("Scatter"):
            kinds.add(each.type)
    return kinds
