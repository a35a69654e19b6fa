//! How large a model is, from its config alone.

/// Lower bounds of the sizes of a model or a part of it, in floating point so that no product overflows. Activations are those of
/// one example.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Size {
    /// Trained scalars.
    pub parameters: f64,
    /// Values that backpropagation keeps when it stores them.
    pub activations: f64,
    /// Those of the largest network, which it keeps in any case.
    pub largest: f64,
    /// Values of the widest layer.
    pub widest: f64,
    /// Networks.
    pub nets: f64,
}

impl Size {
    /// A layer without a network.
    pub(super) fn layer(parameters: f64) -> Self {
        Self { parameters, ..Self::default() }
    }

    /// A network, the values of whose hidden layers are `activations`, and those of the widest one `widest`.
    pub(super) fn net(parameters: f64, activations: f64, widest: f64) -> Self {
        Self { parameters, activations, largest: activations, widest, nets: 1. }
    }

    /// Adds another part, `times` times.
    pub(super) fn add(&mut self, part: Self, times: f64) {
        self.parameters += times * part.parameters;
        self.activations += times * part.activations;
        self.nets += times * part.nets;
        if times > 0. {
            self.largest = self.largest.max(part.largest);
            self.widest = self.widest.max(part.widest);
        }
    }
}
