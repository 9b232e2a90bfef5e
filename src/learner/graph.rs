//! Values on dfdx's tape.
//!
//! dfdx 0.13 builds layers for shapes known at compile time; channels and lengths of a pipeline
//! are known at run time. So a [`Node`] keeps its values, and a [`Graph`] the gradients, in slices of
//! our own, and each fused operation of [`super::layers`] records its backward pass with
//! `Tape::add_backward_op`. The order of the backward passes stays dfdx's; no value is copied on the
//! way.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use dfdx::prelude::{Backward, Cpu, OwnedTape, PutTape, Tape, TensorFrom};
use rand::{Rng, RngExt};
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

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
    /// Where its gradient is; `None` for what nothing is learned of.
    place: Option<usize>,
}

impl Node {
    /// The values, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The rows of all nodes, one after the other, as a constant: without a copy where there is one.
    pub fn join(mut nodes: Vec<Self>) -> Self {
        let (rows, columns) = (nodes.iter().map(|node| node.rows).sum(), nodes[0].columns);
        let values = match nodes.len() {
            1 => nodes.swap_remove(0).values,
            _ => Arc::new(nodes.iter().flat_map(Self::values).copied().collect()),
        };
        Self { rows, columns, values, place: None }
    }

    /// The values, without a copy where nothing else holds them.
    pub fn into_values(self) -> Vec<f32> {
        Arc::unwrap_or_clone(self.values)
    }
}

/// One forward pass, recorded where it is to be learned from.
pub struct Graph {
    tape: Option<OwnedTape<f32, Cpu>>,
    backwards: Rc<RefCell<Backwards>>,
    parameters: Vec<Node>,
}

/// Gradients while they flow backwards; see [`Backwards::of`].
#[derive(Default)]
pub struct Backwards {
    /// By a node's place; empty until something is added.
    gradients: Vec<Vec<f32>>,
}

impl Backwards {
    /// The gradient with respect to `node`, to be added to; `None` for a constant.
    pub fn of(&mut self, node: &Node) -> Option<&mut [f32]> {
        let gradient = &mut self.gradients[node.place?];
        gradient.resize(node.values.len(), 0.0);
        Some(gradient)
    }

    /// Gives `gradient` to `node` where it has none yet, else adds it.
    pub fn give(&mut self, node: &Node, gradient: Vec<f32>) {
        let Some(place) = node.place else { return };
        assert_eq!(gradient.len(), node.values.len(), "a gradient of another shape");
        let known = &mut self.gradients[place];
        if known.is_empty() {
            *known = gradient;
        } else {
            super::kernels::add(&gradient, known);
        }
    }

    /// Takes the gradient with respect to a node, complete once its own backward pass runs.
    fn take(&mut self, node: &Node) -> Vec<f32> {
        let mut gradient =
            node.place.map(|place| std::mem::take(&mut self.gradients[place])).unwrap_or_default();
        gradient.resize(node.values.len(), 0.0);
        gradient
    }
}

impl Graph {
    /// A pass whose values are all that is wanted.
    pub fn inference() -> Self {
        Self { tape: None, backwards: Rc::default(), parameters: Vec::new() }
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
        Node { rows, columns, values: Arc::new(values), place: None }
    }

    /// A parameter, whose gradient [`Graph::backward`] returns in the order of these calls.
    pub fn parameter(&mut self, parameter: &Parameter) -> Node {
        let node = Node {
            rows: parameter.rows,
            columns: parameter.columns,
            values: Arc::clone(&parameter.values),
            place: self.place(),
        };
        if node.place.is_some() {
            self.parameters.push(node.clone());
        }
        node
    }

    /// The result of an operation. `backward` gets it, with the gradient with respect to it, and
    /// adds to the gradients of what the operation read.
    pub fn operation(
        &mut self,
        values: Vec<f32>,
        rows: usize,
        columns: usize,
        backward: impl FnOnce(&Node, Vec<f32>, &mut Backwards) + 'static,
    ) -> Node {
        let mut output = self.constant(values, rows, columns);
        output.place = self.place();
        if let Some(tape) = &mut self.tape {
            let (output, backwards) = (output.clone(), Rc::clone(&self.backwards));
            tape.add_backward_op(move |_| {
                let backwards = &mut backwards.borrow_mut();
                let gradient = backwards.take(&output);
                backward(&output, gradient, backwards);
                Ok(())
            });
        }
        output
    }

    /// Ends a training pass at a scalar loss, of which `seed` knows the gradients: it adds them
    /// where they belong. Returns the gradients of the parameters in the order in which they were
    /// read; none for an inference pass.
    pub fn backward(self, loss: f32, seed: impl FnOnce(&mut Backwards) + 'static) -> Vec<Vec<f32>> {
        let Some(mut tape) = self.tape else { return Vec::new() };
        let backwards = Rc::clone(&self.backwards);
        tape.add_backward_op(move |_| {
            seed(&mut backwards.borrow_mut());
            Ok(())
        });
        Cpu::default().tensor(loss).put_tape(tape).backward();
        let mut backwards = self.backwards.borrow_mut();
        self.parameters.iter().map(|parameter| backwards.take(parameter)).collect()
    }

    fn place(&self) -> Option<usize> {
        self.tape.as_ref()?;
        let gradients = &mut self.backwards.borrow_mut().gradients;
        gradients.push(Vec::new());
        Some(gradients.len() - 1)
    }
}
