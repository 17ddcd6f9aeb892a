"""The recurrence of a scan as ONNX functions; needs onnxscript, which `rmeeto.export.onnx` has looked for.

h_t = exp(delta_t A) h_{t-1} + B_t w_t; y_t = C_t h_t. B batch, L tokens, G directions, D channels, N states; A is
(G, N, D): the innermost axis is the long one, which runtimes compute along.
"""

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset


@script(Opset("rmeeto", 1), default_opset=op)
def together(delta: FLOAT, w: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """All samples at once: delta, w, y (L, B, G, 1, D); B (L, B, G, N, 1); C (L, B, G, 1, N)."""
    shape = op.Concat(op.Shape(delta, start=1, end=2), op.Shape(A), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), shape)

    @graph()
    def token(h, delta_t, w_t, B_t, C_t):
        after = op.Add(op.Mul(op.Exp(op.Mul(delta_t, A)), h), op.Mul(w_t, B_t))
        y_t = op.MatMul(C_t, after)
        return after, y_t

    last, y = op.Scan(start, delta, w, B, C, body=token, num_scan_inputs=4)
    return y


@script(Opset("rmeeto", 1), default_opset=op)
def one_by_one(delta: FLOAT, w: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """A sample behind the other: delta, w, y (B, L, G, 1, D); B (B, L, G, N, 1); C (B, L, G, 1, N)."""
    start = op.Mul(A, op.Constant(value_float=0.0))

    @graph()
    def sample(delta_b, w_b, B_b, C_b):
        @graph()
        def token(h, delta_t, w_t, B_t, C_t):
            after = op.Add(op.Mul(op.Exp(op.Mul(delta_t, A)), h), op.Mul(w_t, B_t))
            y_t = op.MatMul(C_t, after)
            return after, y_t

        last, y_b = op.Scan(start, delta_b, w_b, B_b, C_b, body=token, num_scan_inputs=4)
        return y_b

    y = op.Scan(delta, w, B, C, body=sample, num_scan_inputs=4)
    return y
