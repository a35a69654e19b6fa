//! What an update is given.

/// How the two rows of state follow the gradient g (after clipping: g is multiplied by `clip`).
#[derive(Clone, Copy, Debug)]
pub enum Accumulate {
    /// m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2.
    Adam {
        /// Of m.
        b1: f64,
        /// Of v.
        b2: f64,
    },
    /// m <- b1 m + (1 - b1) g;  u <- max(b2 u, |g|).
    Adamax {
        /// Of m.
        b1: f64,
        /// Of u.
        b2: f64,
    },
    /// v <- rho v + (1 - rho) g^2 (second row);  m <- mu m + lr g / sqrt(v + eps).
    RmsProp {
        /// Of v.
        rho: f64,
        /// Of m.
        mu: f64,
        /// The rate.
        lr: f64,
        /// Added to v.
        eps: f64,
    },
}

/// How a parameter follows its state (m, v).
#[derive(Clone, Copy, Debug)]
pub enum Apply {
    /// p <- p - a m / (sqrt(v) c + eps).
    Adam {
        /// The rate.
        a: f64,
        /// The correction of v.
        c: f64,
        /// Added to the denominator.
        eps: f64,
    },
    /// p <- p - a m / (v c + eps).
    Adamax {
        /// The rate.
        a: f64,
        /// The correction of v.
        c: f64,
        /// Added to the denominator.
        eps: f64,
    },
    /// p <- p - m.
    Momentum,
}

/// The numbers of one update; named as in [`Accumulate`] and [`Apply`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Hyper {
    /// Of the first moment.
    pub b1: f64,
    /// Of the second moment.
    pub b2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// The corrected rate of Adam and Adamax.
    pub a: f64,
    /// The correction of the second moment.
    pub c: f64,
    /// The rate of RMSProp.
    pub lr: f64,
    /// Of RMSProp.
    pub momentum: f64,
    /// What the moving average keeps.
    pub decay: f64,
    /// The largest norm; infinite for none.
    pub max_norm: f64,
    /// 0 Adam, 1 Adamax, 2 RMSProp.
    pub rule: f64,
}

impl Hyper {
    /// How many they are.
    pub(crate) const LEN: usize = 10;

    /// In the order of update.h.
    pub(crate) fn numbers(&self) -> [f64; Self::LEN] {
        [
            self.b1,
            self.b2,
            self.eps,
            self.a,
            self.c,
            self.lr,
            self.momentum,
            self.decay,
            self.max_norm,
            self.rule,
        ]
    }
}
