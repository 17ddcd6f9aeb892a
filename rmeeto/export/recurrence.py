"""The recurrence of a scan as ONNX functions; needs onnxscript, which `rmeeto.export.onnx` has looked for.

h_t = exp(delta_t A) h_{t-1} + B_t w_t, w_t = delta_t u_t; y_t = C_t h_t. B batch, L tokens, G directions, D channels,
N states; A is (G, N, D): the innermost axis is the long one, which runtimes compute along. Step sizes, B and C are in
the order of each direction's scan; u and y of the second direction are read and written from the last token.
"""

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset


@script(Opset("rmeeto", 1), default_opset=op)
def single(delta: FLOAT, u: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """One direction, all samples at once: delta, u, y (L, B, 1, 1, D); B (L, B, 1, N, 1); C (L, B, 1, 1, N)."""
    shape = op.Concat(op.Shape(delta, start=1, end=2), op.Shape(A), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), shape)

    @graph()
    def token(h, delta_t, u_t, B_t, C_t):
        w_t = op.Mul(delta_t, u_t)
        after = op.Add(op.Mul(op.Exp(op.Mul(delta_t, A)), h), op.Mul(w_t, B_t))
        y_t = op.MatMul(C_t, after)
        return after, y_t

    last, y = op.Scan(start, delta, u, B, C, body=token, num_scan_inputs=4)
    return y


@script(Opset("rmeeto", 1), default_opset=op)
def together(delta: FLOAT, u: FLOAT, u_b: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """Both directions' sum, all samples at once: delta (L, B, 2, 1, D); u, u_b, y (L, B, 1, 1, D); B, C as of one."""
    shape = op.Concat(op.Shape(delta, start=1, end=2), op.Shape(A), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), shape)

    @graph()
    def token(h, delta_t, u_t, u_b_t, B_t, C_t):
        w_t = op.Mul(delta_t, op.Concat(u_t, u_b_t, axis=-3))
        after = op.Add(op.Mul(op.Exp(op.Mul(delta_t, A)), h), op.Mul(w_t, B_t))
        y_t, y_b_t = op.Split(op.MatMul(C_t, after), axis=-3, num_outputs=2)
        return after, y_t, y_b_t

    last, y, y_b = op.Scan(
        start, delta, u, u_b, B, C, body=token, num_scan_inputs=5,
        scan_input_directions=[0, 0, 1, 0, 0], scan_output_directions=[0, 1],
    )  # fmt: skip
    return op.Add(y, y_b)


@script(Opset("rmeeto", 1), default_opset=op)
def one_by_one(delta: FLOAT, u: FLOAT, u_b: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """As `together`, a sample behind the other, and the samples before the tokens: delta (B, L, 2, 1, D), ..."""
    start = op.Mul(A, op.Constant(value_float=0.0))

    @graph()
    def sample(delta_b, u_f, u_b, B_b, C_b):
        @graph()
        def token(h, delta_t, u_t, u_b_t, B_t, C_t):
            w_t = op.Mul(delta_t, op.Concat(u_t, u_b_t, axis=-3))
            after = op.Add(op.Mul(op.Exp(op.Mul(delta_t, A)), h), op.Mul(w_t, B_t))
            y_t, y_b_t = op.Split(op.MatMul(C_t, after), axis=-3, num_outputs=2)
            return after, y_t, y_b_t

        last, y_f, y_b = op.Scan(
            start, delta_b, u_f, u_b, B_b, C_b, body=token, num_scan_inputs=5,
            scan_input_directions=[0, 0, 1, 0, 0], scan_output_directions=[0, 1],
        )  # fmt: skip
        return op.Add(y_f, y_b)

    y = op.Scan(delta, u, u_b, B, C, body=sample, num_scan_inputs=5)
    return y
