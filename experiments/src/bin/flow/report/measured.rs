//! Measured numbers as lines of text.

use experiments::evaluate::Evaluation;
use experiments::summary::Baselines;

/// The terms of an evaluation, for people.
pub fn terms(score: &Evaluation, split: &str) -> String {
    let Evaluation { bits_per_dim, std_err, log_det_bits, prior_bits, images, .. } = score;
    let (noise, tighter) = match (score.nats, score.noise_draws, score.importance_samples) {
        (Some(nats), ..) => (format!("{nats:.4} nats a point"), String::new()),
        (None, draws, k @ 2..) => {
            let times = if draws == 1 { String::new() } else { format!("{draws} times ") };
            let gain = prior_bits + log_det_bits - bits_per_dim;
            (
                format!("{} bins, {times}K = {k} noise draws an image", score.bins),
                format!(" - {gain:.4} by K = {k}"),
            )
        }
        (None, draws, _) => {
            let s = if draws == 1 { "" } else { "s" };
            (format!("{} bins, {draws} noise draw{s} an image", score.bins), String::new())
        }
    };
    format!(
        "{split}: {bits_per_dim:.4} ± {std_err:.4} bits/dim over {images} examples = prior {prior_bits:.4} + log-det \
         {log_det_bits:.4}{tighter}; {noise}; log-likelihood {:.2} nats",
        score.log_likelihood
    )
}

/// The lines about what stands beside a number.
pub fn comparison(score: Option<&Evaluation>, beside: &Baselines) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(lower), Some(upper)) = (beside.entropy_lower, beside.entropy_upper) {
        let about = match score {
            Some(s) => format!(
                "; the model is {:+.4} from {}",
                s.bits_per_dim - lower,
                if upper > lower { "the lower bound" } else { "it" }
            ),
            None => String::new(),
        };
        let range = if upper > lower { format!("{lower:.4} to {upper:.4}") } else { format!("{lower:.4}") };
        lines.push(format!("entropy of the data: {range} bits/dim{about}"));
    }
    if let Some(c) = &beside.codecs {
        let each: String =
            c.each().map(|(codec, bits, how)| format!("{codec} {bits:.4} ({how}), ")).collect();
        lines.push(format!(
            "the first {} images, lossless: {each}the model {:.4} bits/dim",
            c.images, c.model_bits_per_dim
        ));
    }
    if let Some(g) = &beside.gaussian {
        lines
            .push(format!("a Gaussian for each subpixel: {:.4} ± {:.4} bits/dim", g.bits_per_dim, g.std_err));
    }
    if let Some(p) = &beside.paper {
        lines.push(format!("paper: {} bits/dim ({})", p.bits_per_dim, p.source));
    }
    lines
}
