//! Values on dfdx's tape.
//!
//! dfdx 0.13 builds layers for shapes known at compile time; channels and lengths of a pipeline
//! are known at run time. So a [`Node`] keeps its values in a slice of our own beside a dfdx
//! tensor of the same shape that stands for it on the tape, and each fused operation of
//! [`super::layers`] records its backward pass with `Tape::add_backward_op`. Order and
//! accumulation of gradients stay dfdx's; no value is copied on the way.

use std::sync::Arc;

use dfdx::prelude::{
    Backward, Cpu, Gradients, OwnedTape, PutTape, Tape, Tensor, TensorFrom, ZerosTensor,
};
use rand::{Rng, RngExt};
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// A dfdx tensor that stands for values on the tape.
type Slot = Tensor<(usize, usize), f32, Cpu>;

/// A matrix of weights `[rows, columns]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    rows: usize,
    columns: usize,
    values: Arc<Vec<f32>>,
}

/// Numbers of a model, to be looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor<'m> {
    /// Where in the model it is, its parts separated by dots.
    pub name: String,
    pub shape: Vec<usize>,
    /// The last dimension's numbers lie side by side.
    pub values: &'m [f32],
}

impl Parameter {
    /// Zeros: biases.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: Arc::new(vec![0.0; rows * columns]) }
    }

    /// Normal values of variance `2 / rows`, for layers that a ReLU follows (He et al. 2015).
    pub fn random(rows: usize, columns: usize, rng: &mut impl Rng) -> Self {
        let deviation = (2.0 / rows as f32).sqrt();
        let values =
            (0..rows * columns).map(|_| deviation * rng.sample::<f32, _>(StandardNormal)).collect();
        Self { rows, columns, values: Arc::new(values) }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The weights, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// To be looked at under a name.
    pub fn tensor(&self, name: String) -> NamedTensor<'_> {
        NamedTensor { name, shape: vec![self.rows, self.columns], values: &self.values }
    }

    /// The weights, to be changed: between graphs, when nothing else holds them.
    pub fn values_mut(&mut self) -> &mut [f32] {
        Arc::<Vec<f32>>::make_mut(&mut self.values)
    }
}

/// A matrix `[rows, columns]` that an operation of a [`Graph`] read or made.
#[derive(Clone)]
pub struct Node {
    /// Number of rows: segments, or moments of segments.
    pub rows: usize,
    /// Number of columns: features.
    pub columns: usize,
    values: Arc<Vec<f32>>,
    slot: Option<Slot>,
}

impl Node {
    /// The values, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values, without a copy where nothing else holds them.
    pub fn into_values(self) -> Vec<f32> {
        drop(self.slot);
        Arc::unwrap_or_clone(self.values)
    }
}

/// One forward pass, recorded where it is to be learned from.
pub struct Graph {
    device: Cpu,
    tape: Option<OwnedTape<f32, Cpu>>,
    parameters: Vec<Slot>,
}

/// Gradients while they flow backwards; see [`Backwards::of`].
pub struct Backwards<'a>(&'a mut Gradients<f32, Cpu>);

impl Backwards<'_> {
    /// The gradient with respect to `node`, to be added to; `None` for a constant.
    pub fn of(&mut self, node: &Node) -> Option<&mut [f32]> {
        let slot = node.slot.as_ref()?;
        match self.0.get_or_alloc_mut(slot) {
            Ok(gradient) => Some(gradient.as_mut_slice()),
            // A host that cannot give this much memory aborts before dfdx could report it.
            Err(error) => panic!("gradient of {} x {}: {error:?}", node.rows, node.columns),
        }
    }

    /// Takes the gradient with respect to an operation's output, complete once its own backward
    /// pass runs.
    pub fn take(&mut self, output: &Node) -> Vec<f32> {
        let Some(slot) = &output.slot else { return vec![0.0; output.rows * output.columns] };
        match self.0.get_or_alloc_mut(slot) {
            Ok(gradient) => std::mem::take(&mut **gradient),
            Err(error) => panic!("gradient of {} x {}: {error:?}", output.rows, output.columns),
        }
    }
}

impl Graph {
    /// A pass whose values are all that is wanted.
    pub fn inference() -> Self {
        Self { device: Cpu::default(), tape: None, parameters: Vec::new() }
    }

    /// A pass that [`Graph::backward`] ends.
    pub fn training() -> Self {
        Self { tape: Some(OwnedTape::default()), ..Self::inference() }
    }

    /// A constant `[rows, columns]`.
    ///
    /// # Panics
    /// If the number of values is not `rows * columns`.
    pub fn constant(&self, values: Vec<f32>, rows: usize, columns: usize) -> Node {
        assert_eq!(values.len(), rows * columns, "not a {rows} x {columns} matrix");
        Node { rows, columns, values: Arc::new(values), slot: None }
    }

    /// A parameter, whose gradient [`Graph::backward`] returns in the order of these calls.
    pub fn parameter(&mut self, parameter: &Parameter) -> Node {
        let (rows, columns) = (parameter.rows, parameter.columns);
        let slot = self.slot(rows, columns);
        self.parameters.extend(slot.clone());
        Node { rows, columns, values: Arc::clone(&parameter.values), slot }
    }

    /// The result of an operation. `backward` gets it, with the gradient with respect to it, and
    /// adds to the gradients of what the operation read.
    pub fn operation(
        &mut self,
        values: Vec<f32>,
        rows: usize,
        columns: usize,
        backward: impl FnOnce(&Node, &[f32], &mut Backwards<'_>) + 'static,
    ) -> Node {
        let mut output = self.constant(values, rows, columns);
        output.slot = self.slot(rows, columns);
        if let Some(tape) = &mut self.tape {
            let output = output.clone();
            tape.add_backward_op(move |gradients| {
                let mut gradients = Backwards(gradients);
                let gradient = gradients.take(&output);
                backward(&output, &gradient, &mut gradients);
                Ok(())
            });
        }
        output
    }

    /// Ends a training pass at a scalar loss, of which `seed` knows the gradients: it adds them
    /// where they belong. Returns the gradients of the parameters in the order in which they were
    /// read; none for an inference pass.
    pub fn backward(
        self,
        loss: f32,
        seed: impl FnOnce(&mut Backwards<'_>) + 'static,
    ) -> Vec<Vec<f32>> {
        let Some(mut tape) = self.tape else { return Vec::new() };
        tape.add_backward_op(move |gradients| {
            seed(&mut Backwards(gradients));
            Ok(())
        });
        let mut gradients = self.device.tensor(loss).put_tape(tape).backward();
        self.parameters
            .iter()
            .map(|slot| match gradients.get_or_alloc_mut(slot) {
                Ok(gradient) => std::mem::take(&mut **gradient),
                Err(error) => panic!("gradient of a parameter: {error:?}"),
            })
            .collect()
    }

    fn slot(&self, rows: usize, columns: usize) -> Option<Slot> {
        self.tape.as_ref().map(|_| self.device.zeros_like(&(rows, columns)))
    }
}
