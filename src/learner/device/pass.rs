//! Forward passes in dfdx's tensors, recorded or not.

use dfdx::prelude::{
    Backward, Device, Gradients, OwnedTape, PutTape, Shape, SplitTape, Tape, Tensor,
};

/// A matrix `[rows, columns]` of numbers on a device.
pub type Matrix<D> = Tensor<(usize, usize), f32, D>;
/// One number per row, or per column.
pub type Vector<D> = Tensor<(usize,), f32, D>;

/// One forward pass; it owns the tape, so that tensors can be used any number of times.
#[derive(Default)]
pub struct Pass<T> {
    tape: T,
}

impl<T> Pass<T> {
    /// What `operation` makes of `input`, recorded on the pass's tape.
    pub fn on<A: Shape, B: Shape, D: Device<f32>>(
        &mut self,
        input: Tensor<A, f32, D>,
        operation: impl FnOnce(Tensor<A, f32, D, T>) -> Result<Tensor<B, f32, D, T>, D::Err>,
    ) -> Result<Tensor<B, f32, D>, D::Err>
    where
        T: Tape<f32, D>,
    {
        let (output, tape) =
            operation(input.put_tape(std::mem::take(&mut self.tape)))?.split_tape();
        self.tape = tape;
        Ok(output)
    }
}

impl<D: Device<f32>> Pass<OwnedTape<f32, D>> {
    /// Ends a recorded pass: the gradients of `loss`.
    pub fn backward(self, loss: Tensor<(), f32, D>) -> Result<Gradients<f32, D>, D::Err> {
        loss.put_tape(self.tape).try_backward()
    }
}
