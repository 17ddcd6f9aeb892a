"""The recurrence of a scan as an ONNX function; needs onnxscript, which `rmeeto.export.onnx` has looked for."""

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset


@script(Opset("rmeeto", 1), default_opset=op)
def recurrence(delta: FLOAT, w: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """h_t = exp(delta_t A) h_{t-1} + B_t w_t; y_t = C_t h_t, from the first of L tokens.

    Batch size B, G directions, D channels, N states; delta, w, y (L, B, G, 1, D); A (G, N, D); B (L, B, G, N, 1);
    C (L, B, G, 1, N): the innermost axis is the long one, which runtimes compute along.
    """
    shape = op.Concat(op.Shape(delta, start=1, end=2), op.Shape(A), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), shape)

    @graph()
    def token(h, delta_t, w_t, B_t, C_t):
        after = op.Add(op.Mul(op.Exp(op.Mul(delta_t, A)), h), op.Mul(w_t, B_t))
        y_t = op.MatMul(C_t, after)
        return after, y_t

    last, y = op.Scan(start, delta, w, B, C, body=token, num_scan_inputs=4)
    return y
