//! The numbers of an update.

/// One step of an update rule; the two rows of state are m and v (or u).
#[derive(Clone, Copy, Debug)]
pub enum RuleStep {
    /// m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- p - a m / (c sqrt(v) + eps).
    Adam {
        /// Decay of the first moment.
        b1: f64,
        /// Decay of the second moment.
        b2: f64,
        /// The learning rate with the first moment's bias correction.
        a: f64,
        /// The second moment's bias correction.
        c: f64,
        /// Added to the denominator.
        eps: f64,
    },
    /// m <- b1 m + (1 - b1) g;  u <- max(b2 u, |g|);  p <- p - a m / (u + eps).
    Adamax {
        /// Decay of the first moment.
        b1: f64,
        /// Decay of the infinity norm.
        b2: f64,
        /// The learning rate with its bias correction.
        a: f64,
        /// Added to the denominator.
        eps: f64,
    },
    /// v <- rho v + (1 - rho) g^2;  m <- momentum m + lr g / sqrt(v + eps);  p <- p - m.
    RmsProp {
        /// Decay of the mean square.
        rho: f64,
        /// Momentum.
        momentum: f64,
        /// The learning rate.
        lr: f64,
        /// Added under the root.
        eps: f64,
    },
}

/// What changes from one update of all parameters to the next.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// The rule's.
    pub step: RuleStep,
    /// The learning rate, which weight decay is multiplied by.
    pub lr: f64,
    /// What the moving average keeps.
    pub decay: f64,
    /// The largest global norm of the gradients; infinite for none.
    pub max_norm: f64,
}

/// What pulls a parameter towards zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Penalty {
    /// The weight of |p|^2 in the loss: g <- g + 2 l2 p, which clipping and the rule then scale like any gradient.
    pub l2: f64,
    /// Decoupled weight decay: p <- (1 - lr decay) p beside the rule's step (Loshchilov and Hutter 2019, algorithm 2).
    pub decay: f64,
}

/// Sums over the updates since they were last read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// The sum of each batch's mean log p(x), in nats.
    pub log_prob: f64,
    /// The sum of the gradients' global norms, before clipping.
    pub norm: f64,
    /// The sum of the factors that clipping multiplied gradients by.
    pub clip: f64,
    /// Updates made.
    pub updates: u64,
    /// Set once an update was not made; no later one is made either. True if its loss was not finite, false if its gradient
    /// was not.
    pub not_finite: Option<bool>,
}
