"""The recurrence of a scan as an ONNX function; needs onnxscript, which `rmeeto.export.onnx` has looked for.

L tokens, G directions, B batch, D channels, N states. The innermost axis is the long one: runtimes compute along it.
"""

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset


@script(Opset("rmeeto", 1), default_opset=op)
def recurrence(delta: FLOAT, w: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """h_t = exp(delta_t A) h_{t-1} + B_t w_t; y_t = C_t h_t.

    Shapes: delta, w (L, G, B, 1, D); A (G, 1, N, D); B (L, G, B, N, 1); C (L, G, B, 1, N) -> y (L, G, B, 1, D).
    """
    shape = op.Concat(op.Shape(delta, start=1, end=3), op.Shape(A, start=2), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), shape)

    @graph()
    def token(h, delta_t, w_t, B_t, C_t):
        after = op.Add(op.Mul(op.Exp(op.Mul(delta_t, A)), h), op.Mul(w_t, B_t))
        y_t = op.MatMul(C_t, after)
        return after, y_t

    last, y = op.Scan(start, delta, w, B, C, body=token, num_scan_inputs=4)
    return y
