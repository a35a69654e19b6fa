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

/// The lines about what stands beside a number: in bits/dim, and of vectors in nats, too.
pub fn comparison(score: Option<&Evaluation>, beside: &Baselines) -> Vec<String> {
    // Nats in a bit/dim, of vectors.
    let nats = score.and_then(|s| Some(s.nats? / s.bits_per_dim)).filter(|nats| nats.is_finite());
    let unit = |bits: f64| match nats {
        Some(nats) => format!("{bits:.4} bits/dim, {:.4} nats", bits * nats),
        None => format!("{bits:.4} bits/dim"),
    };
    let mut lines = Vec::new();
    if let (Some(lower), Some(upper)) = (beside.entropy_lower, beside.entropy_upper) {
        let about = match score {
            Some(s) => {
                let off = s.bits_per_dim - lower;
                let from = if upper > lower { "the lower bound" } else { "it" };
                let nats = nats.map_or_else(String::new, |nats| format!(", {:+.4} nats,", off * nats));
                format!("; the model is {off:+.4}{nats} from {from}")
            }
            None => String::new(),
        };
        let range = if upper > lower { format!("{lower:.4} to {upper:.4} bits/dim") } else { unit(lower) };
        lines.push(format!("entropy of the data: {range}{about}"));
    }
    if let Some(c) = &beside.codecs {
        let each: String =
            c.each().map(|(codec, bits, how)| format!("{codec} {bits:.4} ({how}), ")).collect();
        lines.push(format!(
            "the first {} images, lossless: {each}the model {:.4} bits/dim",
            c.images, c.model_bits_per_dim
        ));
    }
    match (&beside.gaussian, nats) {
        (Some(g), None) => lines
            .push(format!("a Gaussian for each subpixel: {:.4} ± {:.4} bits/dim", g.bits_per_dim, g.std_err)),
        (Some(g), Some(_)) => lines.push(format!("a Gaussian fitted to them: {}", unit(g.bits_per_dim))),
        (None, _) => {}
    }
    if let Some(g) = &beside.mixture {
        let n = Baselines::COMPONENTS;
        lines.push(format!("a mixture of {n} Gaussians fitted to them: {}", unit(g.bits_per_dim)));
    }
    if let Some(p) = &beside.paper {
        let nats = p.log_likelihood.map_or_else(String::new, |ll| format!(", log-likelihood {ll} nats"));
        lines.push(format!("paper: {} bits/dim{nats} ({})", p.bits_per_dim, p.source));
    }
    lines
}
