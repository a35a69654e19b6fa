//! `faces`: drawn 32 × 32 colour faces whose number of bits per dimension is known.
//!
//! x_j = clip(m_j(θ) + ⌊4 z_j⌉, 0, 255), z_j ~ N(0, 1) independent, j = 1 … D, D = 3 · 32 · 32.
//!
//! θ says what is drawn (hair, smile, where the eyes are …) and is uniform on a finite grid, the product of
//! the levels in [`FACTORS`], of |Θ| ≤ 2⁶⁴ points. The drawing m(θ) is rounded to integers in \[24, 231\].
//! Then, with H in bits,
//!
//! - H(x) ≥ H(x | θ), since conditioning never adds entropy;
//! - H(x) ≤ H(x, θ) = H(θ) + H(x | θ) = log₂|Θ| + H(x | θ).
//!
//! Given θ the subpixels are independent, so H(x | θ) = Σ_j h(m_j(θ)), where h(m) is the entropy of the
//! rounded, clipped Gaussian about the integer m: the masses are p_k = Φ((k + ½ − m)/4) − Φ((k − ½ − m)/4)
//! for 0 < k < 255, and the two ends take the tails. Clipping starts 5.9 standard deviations away from any
//! mean that occurs, so that h(m) differs over \[24, 231\] by less than 1e-6 bits. Whatever the drawings look
//! like, therefore,
//!
//! min_m h(m) ≤ H(x)/D ≤ max_m h(m) + log₂|Θ| / D,
//!
//! which is what [`entropy`] returns: an interval of 0.021 bits/dim. With fewer bits b, x is ⌊x / 2^(8−b)⌋ and p_k the mass of
//! the merged levels; the same holds, and at 5 bits the interval is 0.045 bits/dim wide. No model can have an expected loss on
//! this set below its lower end, and a model with a loss of L bits/dim is within L − lower of the truth in KL
//! divergence.
//!
//! The class is the colour of the hair; the attributes are the factors that [`ATTRIBUTES`] names.

use super::{Dataset, Entropy, Request, Split, Values, example_rng};
use anyhow::Result;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

/// The version of the generator: it changes whenever a seed would give other images.
const VERSION: u32 = 1;

/// Height and width of an image.
pub const SIDE: usize = 32;
/// Subpixels of an image.
pub const DIMS: usize = 3 * SIDE * SIDE;
/// Standard deviation of the noise, in grey levels.
pub const NOISE: f64 = 4.0;
/// The darkest value a drawing has before noise.
pub const DARKEST: u8 = 24;
/// The lightest value a drawing has before noise.
pub const LIGHTEST: u8 = 231;

/// The colours of hair, which are the classes.
pub const CLASSES: [&str; 4] = ["black hair", "brown hair", "blond hair", "red hair"];

/// How many of [`FACTORS`], from the first on, are handed out as attributes.
pub const ATTRIBUTES: usize = 8;

/// Every coordinate of the grid Θ and how many levels it has; the first [`ATTRIBUTES`] are the labelled ones.
///
/// `turn` has the levels left, ahead, right; `hair` is the class; the others with two levels are no and yes.
pub const FACTORS: [(&str, u8); 30] = [
    ("smile", 2),
    ("glasses", 2),
    ("hair", 4),
    ("turn", 3),
    ("long hair", 2),
    ("beard", 2),
    ("skin", 4),
    ("background", 8),
    ("head x", 8),
    ("head y", 8),
    ("head width", 8),
    ("head height", 8),
    ("tilt", 8),
    ("fine turn", 8),
    ("eye distance", 4),
    ("eye height", 4),
    ("eye size", 4),
    ("gaze", 4),
    ("brow height", 4),
    ("brow angle", 4),
    ("nose length", 4),
    ("mouth curve", 8),
    ("mouth width", 4),
    ("mouth height", 4),
    ("hairline", 4),
    ("hair tone", 4),
    ("skin tone", 4),
    ("light", 2),
    ("shirt", 8),
    ("background tone", 4),
];

/// log₂|Θ|, the entropy of θ in bits.
#[must_use]
pub fn grid_bits() -> f64 {
    FACTORS.iter().map(|&(_, levels)| f64::from(levels).log2()).sum()
}

/// One point of the grid: a level for each of [`FACTORS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theta([u8; FACTORS.len()]);

impl Theta {
    /// Draws a point uniformly.
    pub fn sample(rng: &mut impl Rng) -> Self {
        Self(FACTORS.map(|(_, levels)| rng.random_range(0..levels)))
    }

    /// The level of a factor.
    ///
    /// # Panics
    /// When no factor has this name.
    #[must_use]
    pub fn level(&self, factor: &str) -> u8 {
        self.level_of(factor).0
    }

    /// The level of a factor, and how many it has.
    fn level_of(&self, factor: &str) -> (u8, u8) {
        let place = FACTORS.iter().position(|(name, _)| *name == factor);
        let place = place.unwrap_or_else(|| panic!("there is no factor `{factor}`"));
        (self.0[place], FACTORS[place].1)
    }

    /// The levels of the labelled factors.
    #[must_use]
    pub fn attributes(&self) -> &[u8] {
        &self.0[..ATTRIBUTES]
    }

    fn yes(&self, factor: &str) -> bool {
        self.level(factor) == 1
    }

    /// The middle of the level's share of \[−1, 1\].
    fn centred(&self, factor: &str) -> f32 {
        let (level, levels) = self.level_of(factor);
        (2.0 * f32::from(level) + 1.0) / f32::from(levels) - 1.0
    }
}

type Colour = [f32; 3];

const SKIN: [Colour; 4] = [[1.0, 0.83, 0.71], [0.91, 0.69, 0.52], [0.72, 0.49, 0.34], [0.49, 0.32, 0.22]];
const HAIR: [Colour; 4] = [[0.08, 0.07, 0.09], [0.33, 0.17, 0.07], [0.93, 0.76, 0.38], [0.72, 0.26, 0.07]];
const BACKGROUND: [Colour; 8] = [
    [0.55, 0.76, 0.93],
    [0.66, 0.87, 0.69],
    [0.97, 0.86, 0.57],
    [0.93, 0.67, 0.65],
    [0.77, 0.69, 0.91],
    [0.52, 0.83, 0.84],
    [0.85, 0.85, 0.86],
    [0.35, 0.43, 0.56],
];
const SHIRT: [Colour; 8] = [
    [0.80, 0.20, 0.22],
    [0.16, 0.35, 0.66],
    [0.16, 0.52, 0.36],
    [0.94, 0.94, 0.95],
    [0.18, 0.18, 0.22],
    [0.93, 0.62, 0.15],
    [0.50, 0.25, 0.55],
    [0.30, 0.62, 0.72],
];

fn scale(colour: Colour, by: f32) -> Colour {
    colour.map(|c| c * by)
}

/// How much of a pixel lies on the inner side of an edge at this signed distance (negative inside).
fn cover(distance: f32) -> f32 {
    (0.5 - distance).clamp(0.0, 1.0)
}

/// Coverage of an ellipse with half axes `a`, `b` at an offset from its centre, by the first-order distance
/// k₀(k₀−1)/k₁.
fn ellipse(u: f32, v: f32, a: f32, b: f32) -> f32 {
    let (p, q) = (u / a, v / b);
    let k0 = (p * p + q * q).sqrt();
    let k1 = ((p / a) * (p / a) + (q / b) * (q / b)).sqrt();
    if k1 == 0.0 { 1.0 } else { cover(k0 * (k0 - 1.0) / k1) }
}

/// Coverage of a stroke of this half width between two points.
fn stroke(u: f32, v: f32, from: [f32; 2], to: [f32; 2], half: f32) -> f32 {
    let (du, dv) = (to[0] - from[0], to[1] - from[1]);
    let along = (((u - from[0]) * du + (v - from[1]) * dv) / (du * du + dv * dv)).clamp(0.0, 1.0);
    let (eu, ev) = (u - from[0] - along * du, v - from[1] - along * dv);
    cover((eu * eu + ev * ev).sqrt() - half)
}

/// A drawing in progress, and the frame of the head: u to the right and v down, about its centre, turned by
/// its tilt.
struct Canvas {
    pixels: [Colour; SIDE * SIDE],
    centre: [f32; 2],
    cos: f32,
    sin: f32,
}

impl Canvas {
    /// Lays paint over a box of the image; `paint` is given the pixel's centre and returns coverage and
    /// colour.
    fn layer(&mut self, [left, top, right, bottom]: [f32; 4], paint: impl Fn(f32, f32) -> (f32, Colour)) {
        let range =
            |low: f32, high: f32| low.floor().max(0.0) as usize..(high.ceil().max(0.0) as usize).min(SIDE);
        for y in range(top, bottom) {
            for x in range(left, right) {
                let (coverage, colour) = paint(x as f32 + 0.5, y as f32 + 0.5);
                if coverage > 0.0 {
                    for (old, new) in self.pixels[y * SIDE + x].iter_mut().zip(colour) {
                        *old += coverage * (new - *old);
                    }
                }
            }
        }
    }

    /// The same over a box of the head's frame, given by its centre and half sides; `paint` is given u and v.
    fn head(&mut self, [u, v, a, b]: [f32; 4], paint: impl Fn(f32, f32) -> (f32, Colour)) {
        let ([cx, cy], cos, sin) = (self.centre, self.cos, self.sin);
        let (x, y) = (cx + u * cos - v * sin, cy + u * sin + v * cos);
        // One more pixel on each side, for the soft edge.
        let (half_x, half_y) = (a * cos.abs() + b * sin.abs() + 1.0, a * sin.abs() + b * cos.abs() + 1.0);
        self.layer([x - half_x, y - half_y, x + half_x, y + half_y], |x, y| {
            let (dx, dy) = (x - cx, y - cy);
            paint(dx * cos + dy * sin, dy * cos - dx * sin)
        });
    }
}

/// What all parts of a drawing share: the point of the grid, half the width and height of the head, where the light comes
/// from, the sine and cosine of the turn, and the colours of skin and hair.
struct Face<'a> {
    theta: &'a Theta,
    rx: f32,
    ry: f32,
    light: f32,
    sin_yaw: f32,
    cos_yaw: f32,
    skin: Colour,
    hair: Colour,
}

impl<'a> Face<'a> {
    fn new(theta: &'a Theta) -> Self {
        let c = |factor| theta.centred(factor);
        let yaw = 0.40 * (f32::from(theta.level("turn")) - 1.0) + 0.10 * c("fine turn");
        let (sin_yaw, cos_yaw) = libm::sincosf(yaw);
        Self {
            theta,
            rx: 8.3 + 0.9 * c("head width"),
            ry: 10.4 + 0.9 * c("head height"),
            light: c("light") * 2.0,
            sin_yaw,
            cos_yaw,
            skin: scale(SKIN[usize::from(theta.level("skin"))], 0.97 + 0.06 * c("skin tone")),
            hair: scale(HAIR[usize::from(theta.level("hair"))], 1.0 + 0.16 * c("hair tone")),
        }
    }

    /// Coverage of the head.
    fn skull(&self, u: f32, v: f32) -> f32 {
        // Jaws are narrower than foreheads.
        let narrow = 1.0 - 0.17 * (v.max(0.0) / self.ry) * (v.max(0.0) / self.ry);
        ellipse(u, v, self.rx * narrow, self.ry)
    }

    /// Where turning moves a feature at azimuth a on the head's surface, sin(a + yaw), and how it squeezes it, by
    /// cos(a + yaw).
    fn turned(&self, azimuth: f32) -> (f32, f32) {
        let (s, c) = libm::sincosf(azimuth);
        (s * self.cos_yaw + c * self.sin_yaw, (c * self.cos_yaw - s * self.sin_yaw).max(0.35))
    }
}

/// Draws the backdrop, hair that falls behind the head, neck, shoulders, ears, and the skin of the face.
fn draw_behind(face: &Face, canvas: &mut Canvas) {
    let Face { theta, rx, ry, light, sin_yaw, cos_yaw, skin, hair } = *face;
    let c = |factor| face.theta.centred(factor);
    let [cx, cy] = canvas.centre;
    let backdrop =
        scale(BACKGROUND[usize::from(theta.level("background"))], 0.92 + 0.12 * c("background tone"));
    let shirt = SHIRT[usize::from(theta.level("shirt"))];
    // The light comes from one upper corner, on the backdrop as on the face.
    canvas.layer([0.0, 0.0, 32.0, 32.0], |x, y| {
        (1.0, scale(backdrop, 1.06 - 0.008 * y - 0.005 * light * (x - 16.0)))
    });
    if theta.yes("long hair") {
        canvas.head([0.0, 4.0, rx + 2.8, ry + 4.0], |u, v| {
            let strands = 0.78 + 0.05 * (u * 1.7).rem_euclid(2.0);
            (ellipse(u, v - 2.5, rx + 2.4 + 0.06 * v.max(0.0), ry + 3.6), scale(hair, strands))
        });
    }
    // Neck, then shoulders with the neckline cut out of them.
    canvas.layer([cx - 5.0, cy + 4.0, cx + 5.0, 32.0], |x, y| {
        (cover((x - cx).abs() - 3.4) * cover(cy + 5.0 - y), scale(skin, 0.74))
    });
    let body = 16.0 + 0.6 * (cx - 16.0);
    canvas.layer([0.0, 24.0, 32.0, 32.0], |x, y| {
        let neckline = ellipse(x - cx, y - (cy + ry + 1.2), 4.4, 2.6);
        let fold = 1.0 - 0.05 * light * (x - body) / 8.0 - 0.012 * (x - body).abs();
        (ellipse(x - body, y - 36.5, 14.0, 9.6) * (1.0 - neckline), scale(shirt, fold))
    });
    for side in [-1.0_f32, 1.0] {
        let u0 = rx * (1.0 * side * cos_yaw - 0.10 * sin_yaw);
        canvas.head([u0, 0.6, 1.6, 2.3], |u, v| {
            let inner = ellipse(u - u0, v - 0.6, 0.8, 1.3);
            (ellipse(u - u0, v - 0.6, 1.6, 2.3), scale(skin, 0.88 - 0.12 * inner))
        });
    }

    canvas.head([0.0, 0.0, rx, ry], |u, v| {
        let (p, q) = (u / rx - 0.25 * sin_yaw, v / ry);
        let shade = 1.03 - 0.10 * light * p - 0.04 * q - 0.13 * (p * p + q * q);
        (face.skull(u, v), scale(skin, shade))
    });
    let blush = [skin[0].min(0.95), skin[1] * 0.72, skin[2] * 0.70];
    for side in [-1.0_f32, 1.0] {
        let (s, squeeze) = face.turned(0.60 * side);
        let u0 = rx * s;
        canvas.head([u0, 3.2, 2.2, 1.6], |u, v| {
            let (p, q) = ((u - u0) / (2.2 * squeeze), (v - 3.2) / 1.6);
            (0.55 * (1.0 - p * p - q * q).max(0.0), blush)
        });
    }
}

/// Draws beard, nose and mouth.
fn draw_lower_face(face: &Face, canvas: &mut Canvas) {
    let Face { theta, rx, ry, light, sin_yaw, cos_yaw, skin, hair } = *face;
    let c = |factor| face.theta.centred(factor);
    let (nose, mouth) = (rx * 0.95 * sin_yaw, rx * 0.90 * sin_yaw);

    let mouth_v = 5.7 + 0.5 * c("mouth height");
    if theta.yes("beard") {
        canvas.head([0.0, ry * 0.6, rx, ry * 0.5], |u, v| {
            let p = (u - 0.7 * mouth) / rx;
            let edge = mouth_v - 1.9 - 4.6 * p * p * p * p + 0.8 * p * p;
            (0.88 * face.skull(u, v) * cover((edge - v) * 0.7), scale(hair, 0.82 - 0.05 * light * p))
        });
    }
    let tip = 2.3 + 0.5 * c("nose length");
    canvas.head([nose, tip - 1.5, 2.0, 2.8], |u, v| {
        let bridge =
            stroke(u, v, [nose * 0.8 - 0.3 * light, tip - 3.0], [nose + 0.55 * light, tip - 0.3], 0.35);
        let base = ellipse(u - nose, v - tip, 1.35, 0.75);
        (0.45 * bridge.max(1.2 * base), scale(skin, 0.62))
    });

    let wide = (2.9 + 0.5 * c("mouth width")) * cos_yaw;
    let lips: Colour = [0.30 + 0.52 * skin[0], 0.42 * skin[1], 0.44 * skin[2]];
    if theta.yes("smile") {
        // An open smile: teeth between a shallow upper and a deep lower arc that meet at the corners.
        let deep = 2.5 + 0.7 * c("mouth curve");
        canvas.head([mouth, mouth_v + 0.4, wide + 1.0, deep + 1.0], |u, v| {
            let t = (u - mouth) / (wide + 0.5);
            let arc = 1.0 - t * t;
            let (upper, lower) = (mouth_v - 0.7 + 0.15 * deep * arc, mouth_v - 0.7 + deep * arc);
            let outside = (upper - v).max(v - lower);
            let open = cover(outside - 0.45) * cover((t.abs() - 1.0) * wide);
            let teeth = cover(outside + 0.30);
            (open, std::array::from_fn(|i| lips[i] * 0.85 + teeth * ([0.99, 0.98, 0.96][i] - lips[i] * 0.85)))
        });
    } else {
        // A closed mouth, from slightly down to nearly straight.
        let bend = -0.55 + 0.65 * c("mouth curve");
        canvas.head([mouth, mouth_v, wide + 0.5, 2.0], |u, v| {
            let t = (u - mouth) / wide;
            let line = mouth_v + bend * (1.0 - t * t);
            (cover((v - line).abs() - 0.55) * cover((t.abs() - 1.0) * wide), scale(lips, 0.82))
        });
    }
}

/// Draws eyes, brows, glasses, and the hair on the head.
fn draw_upper_face(face: &Face, canvas: &mut Canvas) {
    let Face { theta, rx, ry, light, sin_yaw, skin, hair, .. } = *face;
    let c = |factor| face.theta.centred(factor);
    let azimuth = 0.43 + 0.05 * c("eye distance");
    let eye_v = -0.9 + 0.5 * c("eye height");
    let (open, look) = (1.18 + 0.22 * c("eye size"), 0.5 * c("gaze"));
    let brow = eye_v - 2.5 - 0.4 * c("brow height");
    let glasses = theta.yes("glasses");
    let mut inner_rims = [0.0; 2];
    for (rim, side) in inner_rims.iter_mut().zip([-1.0_f32, 1.0]) {
        let (s, squeeze) = face.turned(azimuth * side);
        let (u0, a) = (rx * s, (1.75 + 0.2 * c("eye size")) * squeeze);
        canvas.head([u0, eye_v, a, open], |u, v| {
            let iris = ellipse(u - u0 - look, v - eye_v, 0.95, 1.05);
            let glint = 0.8 * ellipse(u - u0 - look + 0.4 * light, v - eye_v + 0.5, 0.35, 0.35);
            let lid = cover(v - (eye_v - open + 0.55));
            let dark = [0.13, 0.10, 0.09];
            let eye: Colour = std::array::from_fn(|i| {
                let ball = 0.98 + iris * (dark[i] - 0.98);
                let lit = ball + glint * iris * (1.0 - ball);
                lit + 0.6 * lid * (dark[i] - lit)
            });
            (ellipse(u - u0, v - eye_v, a, open), eye)
        });
        let lift = 0.45 * c("brow angle");
        let (from, to) =
            ([u0 - side * 1.7 * squeeze, brow + lift], [u0 + side * 1.9 * squeeze, brow - 0.3 * lift]);
        canvas.head([u0, brow, 2.4, 1.4], |u, v| (0.85 * stroke(u, v, from, to, 0.42), scale(hair, 0.72)));
        if glasses {
            let (ga, gb) = (2.75 * squeeze.max(0.6), 2.35);
            canvas.head([u0, eye_v + 0.2, ga + 0.6, gb + 0.6], |u, v| {
                let (outer, lens) = (ellipse(u - u0, v - eye_v - 0.2, ga + 0.45, gb + 0.45), {
                    ellipse(u - u0, v - eye_v - 0.2, ga - 0.4, gb - 0.4)
                });
                let frame = outer * (1.0 - lens);
                let tint = 0.16 * lens;
                (frame.max(tint), if frame > tint { [0.07, 0.07, 0.10] } else { [0.85, 0.95, 1.0] })
            });
            let temple = [side * (rx - 0.2), eye_v - 0.4];
            canvas.head([0.0, eye_v, rx, 1.6], |u, v| {
                (0.85 * stroke(u, v, [u0 + side * ga, eye_v - 0.2], temple, 0.3), [0.07, 0.07, 0.10])
            });
            *rim = u0 - side * ga;
        }
    }
    if glasses {
        let [left, right] = inner_rims.map(|u| [u, eye_v - 0.2]);
        canvas.head([0.5 * (left[0] + right[0]), eye_v, 3.0, 1.5], |u, v| {
            (stroke(u, v, left, right, 0.35), [0.07, 0.07, 0.10])
        });
    }

    // Hair last: a cap over the skull down to a hairline that falls at the temples, with a sheen on the lit
    // side.
    let hairline = -ry * (0.50 + 0.09 * c("hairline"));
    let (part, fall) =
        (rx * 0.55 * sin_yaw - 0.12 * rx * light, if theta.yes("long hair") { 9.5 } else { 6.2 });
    let edge = |u: f32| {
        let p = (u - part) / rx;
        hairline + fall * p * p * (0.45 + 0.55 * p.abs())
    };
    // Its shadow on the forehead first, without which brown hair on brown skin would have no outline.
    canvas.head([0.0, -2.0, rx, ry], |u, v| {
        (0.38 * face.skull(u, v) * cover((v - edge(u) - 1.0) * 0.8), scale(skin, 0.45))
    });
    canvas.head([0.0, -2.0, rx + 1.5, ry], |u, v| {
        let (su, sv) = ((u / rx + 0.35 * light) * 2.2, (v / ry + 0.72) * 3.0);
        let sheen = 0.20 * (1.0 - su * su - sv * sv).max(0.0);
        let strands = 0.94 + 0.06 * (u * 0.9 + 0.3 * v).rem_euclid(2.0) + sheen;
        let lit = scale(hair, strands).map(|h| h + 0.25 * sheen);
        (ellipse(u, v + 0.7, rx + 1.1, ry + 1.1) * cover(v - edge(u)), lit)
    });
}

/// Draws m(θ): planar (3, 32, 32), every value an integer in \[24, 231\].
#[must_use]
pub fn draw(theta: &Theta) -> Vec<u8> {
    let c = |factor| theta.centred(factor);
    let tilt = 0.15 * c("tilt");
    // libm, not the platform's functions: the same seed gives the same images everywhere.
    let (sin, cos) = libm::sincosf(tilt);
    let centre = [16.0 + 1.6 * c("head x"), 15.2 + 1.2 * c("head y")];
    let mut canvas = Canvas { pixels: [[0.0; 3]; SIDE * SIDE], centre, cos, sin };
    let face = Face::new(theta);
    draw_behind(&face, &mut canvas);
    draw_lower_face(&face, &mut canvas);
    draw_upper_face(&face, &mut canvas);

    let span = f32::from(LIGHTEST - DARKEST);
    let mut mean = vec![0; DIMS];
    for (i, pixel) in canvas.pixels.iter().enumerate() {
        for (channel, value) in pixel.iter().enumerate() {
            mean[channel * SIDE * SIDE + i] = DARKEST + (span * value.clamp(0.0, 1.0)).round() as u8;
        }
    }
    mean
}

/// Adds the noise: clip(m + ⌊4z⌉, 0, 255), in place.
fn add_noise(pixels: &mut [u8], rng: &mut impl Rng) {
    for pixel in pixels {
        let z: f64 = StandardNormal.sample(rng);
        *pixel = (f64::from(*pixel) + (NOISE * z).round()).clamp(0.0, 255.0) as u8;
    }
}

/// h(m): the entropy in bits of the first `bits` bits of clip(m + ⌊4z⌉, 0, 255) for an integer m.
#[must_use]
pub fn subpixel_entropy(m: u8, bits: u8) -> f64 {
    // Φ of the upper edge of grey level k, as the smaller tail and its sign, so that differences keep their
    // digits.
    let tail = |edge: f64| 0.5 * libm::erfc(edge.abs() / (NOISE * std::f64::consts::SQRT_2));
    let mass = |k: u8| {
        let (low, high) = (f64::from(k) - 0.5 - f64::from(m), f64::from(k) + 0.5 - f64::from(m));
        match k {
            0 => tail(high.min(0.0)) + if high > 0.0 { 0.5 - tail(high) } else { 0.0 },
            255 => tail(low.max(0.0)) + if low < 0.0 { 0.5 - tail(low) } else { 0.0 },
            _ if low > 0.0 => tail(low) - tail(high),
            _ if high < 0.0 => tail(high) - tail(low),
            _ => 1.0 - tail(low) - tail(high),
        }
    };
    let all: Vec<f64> = (0..=255).map(mass).collect();
    let merged = all.chunks(1 << (8 - bits)).map(|levels| levels.iter().sum::<f64>());
    merged.filter(|&p| p > 0.0).map(|p| -p * p.log2()).sum()
}

/// The bounds on H(x)/D of the module's derivation for pixels of 1 to 8 bits, in bits/dim.
#[must_use]
pub fn entropy(bits: u8) -> Entropy {
    let h = (DARKEST..=LIGHTEST).map(|m| subpixel_entropy(m, bits));
    let (low, high) = h.fold((f64::INFINITY, 0.0_f64), |(low, high), h| (low.min(h), high.max(h)));
    Entropy { lower: low, upper: high + grid_bits() / DIMS as f64 }
}

/// What image `index` of part `part` (0 training, 1 validation, 2 test) is: the point of the grid and the
/// image.
fn example(seed: u64, part: u64, index: u64) -> (Theta, Vec<u8>) {
    let mut rng = example_rng(seed, "faces", part, index);
    let theta = Theta::sample(&mut rng);
    let mut image = draw(&theta);
    add_noise(&mut image, &mut rng);
    (theta, image)
}

fn split(seed: u64, part: u64, count: usize) -> Result<Split> {
    let mut pixels = vec![0; count * DIMS];
    let thetas: Vec<Theta> = pixels
        .par_chunks_mut(DIMS)
        .enumerate()
        .map(|(i, to)| {
            let (theta, image) = example(seed, part, i as u64);
            to.copy_from_slice(&image);
            theta
        })
        .collect();
    Split::new(
        vec![3, SIDE, SIDE],
        Values::Pixels(pixels),
        Some(thetas.iter().map(|theta| u32::from(theta.level("hair"))).collect()),
        Some(thetas.iter().map(|theta| theta.attributes().to_vec()).collect()),
    )
}

/// Draws a data set: 20 000 training, 1 000 validation and 2 000 test images unless the request says
/// otherwise.
///
/// # Errors
/// When no training or test images are asked for.
pub fn dataset(request: &Request) -> Result<Dataset> {
    let draw = |part, count| split(request.seed, part, count);
    Ok(Dataset {
        attribute_names: FACTORS[..ATTRIBUTES].iter().map(|(name, _)| (*name).to_owned()).collect(),
        entropy_of_bits: Some(entropy),
        ..request.draw(VERSION, [20_000, 1_000, 2_000], &CLASSES, entropy(8), draw)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Request;

    #[test]
    fn the_grid_is_small_enough() {
        let points: u128 = FACTORS.iter().map(|&(_, levels)| u128::from(levels)).product();
        assert!(points <= 1 << 64);
        assert!((grid_bits() - (points as f64).log2()).abs() < 1e-9);
        let Entropy { lower, upper } = entropy(8);
        assert!(upper - lower < 0.021, "{lower} to {upper}");
        // Computed independently, by sums over error functions in Python.
        for (bits, low, high) in [(5, 1.242_202_8, 1.266_651), (6, 2.104_832_7, 2.104_832_7)] {
            let bounds = entropy(bits);
            let most = bounds.upper - grid_bits() / DIMS as f64;
            assert!((bounds.lower - low).abs() < 1e-6 && (most - high).abs() < 1e-6, "{bounds:?}");
        }
    }

    #[test]
    fn noise_entropy_is_that_of_the_gaussian() {
        // h is the differential entropy of the Gaussian convolved with a bin, all but a Gaussian of variance
        // 16 + 1/12.
        let variance = NOISE * NOISE + 1.0 / 12.0;
        let gaussian = 0.5 * (variance * 2.0 * std::f64::consts::PI * std::f64::consts::E).log2();
        assert!(
            (subpixel_entropy(128, 8) - gaussian).abs() < 1e-5,
            "{} {gaussian}",
            subpixel_entropy(128, 8)
        );
        for m in DARKEST..=LIGHTEST {
            assert!(
                (subpixel_entropy(m, 8) - subpixel_entropy(128, 8)).abs() < 1e-6,
                "{m}: {}",
                subpixel_entropy(m, 8)
            );
        }
        // Without the margin the ends do matter, so the margin is doing its work.
        assert!(subpixel_entropy(0, 8) < gaussian - 1.0 && subpixel_entropy(255, 8) < gaussian - 1.0);
    }

    #[test]
    fn drawn_noise_has_that_entropy() {
        let n = 2_000_000;
        let mut pixels = vec![100_u8; n];
        add_noise(&mut pixels, &mut example_rng(1, "noise", 0, 0));
        let mut counts = [0_usize; 256];
        for &p in &pixels {
            counts[usize::from(p)] += 1;
        }
        let used = counts.iter().filter(|&&c| c > 0).count();
        let plug_in: f64 =
            counts.iter().filter(|&&c| c > 0).map(|&c| c as f64 / n as f64).map(|p| -p * p.log2()).sum();
        // The plug-in estimate is low by (bins − 1)/2n nats (Miller and Madow) and has sd √(Var ln p / n) ≈
        // 0.71/√n nats.
        let estimate = plug_in + (used - 1) as f64 / (2.0 * n as f64) * std::f64::consts::LOG2_E;
        let error = 0.71 * std::f64::consts::LOG2_E / (n as f64).sqrt();
        assert!((estimate - subpixel_entropy(100, 8)).abs() < 4.0 * error, "{estimate}");
    }

    #[test]
    fn means_keep_their_distance_from_the_ends() {
        for i in 0..300 {
            let theta = Theta::sample(&mut example_rng(2, "means", 0, i));
            let mean = draw(&theta);
            assert_eq!(mean.len(), DIMS);
            assert!(mean.iter().all(|m| (DARKEST..=LIGHTEST).contains(m)));
        }
    }

    #[test]
    fn every_factor_shows() {
        // A factor that changed no pixel would only widen the upper bound.
        for (place, (name, levels)) in FACTORS.into_iter().enumerate() {
            let changes = (0..20).any(|i| {
                let mut theta = Theta::sample(&mut example_rng(3, "shows", 0, i));
                let before = draw(&theta);
                theta.0[place] = (theta.0[place] + 1) % levels;
                draw(&theta) != before
            });
            assert!(changes, "{name}");
        }
    }

    #[test]
    fn images_depend_on_seed_part_and_place_only() {
        let long = split(3, 0, 40).unwrap();
        assert_eq!(split(3, 0, 10).unwrap(), long.take(10));
        assert_ne!(split(4, 0, 10).unwrap(), long.take(10));
        assert_ne!(split(3, 1, 10).unwrap(), long.take(10));
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| split(3, 0, 40)).unwrap(), long);
    }

    #[test]
    fn attributes_vary_and_fit_their_names() {
        let request = Request {
            name: "faces".into(),
            train: Some(300),
            valid: Some(0),
            test: Some(2),
            ..Request::default()
        };
        let set = dataset(&request).unwrap();
        assert_eq!((set.train.len(), set.valid.is_none(), set.test.len()), (300, true, 2));
        let rows = set.train.attributes.as_ref().unwrap();
        for (column, (name, levels)) in FACTORS[..ATTRIBUTES].iter().enumerate() {
            assert_eq!(set.attribute_names[column], *name);
            for level in 0..*levels {
                assert!(rows.iter().any(|row| row[column] == level), "{name} never is {level}");
            }
        }
        assert!(set.train.labels.as_ref().unwrap().iter().zip(rows).all(|(&l, row)| l == u32::from(row[2])));
        assert!(dataset(&Request { train: Some(0), ..request }).is_err());
    }

    /// The rounding and clipping alone, against the recipe: noise only, about the drawn mean.
    #[test]
    fn images_are_drawing_plus_noise() {
        let (theta, image) = example(7, 0, 0);
        let mean = draw(&theta);
        let residual: Vec<f64> =
            image.iter().zip(&mean).map(|(&x, &m)| f64::from(x) - f64::from(m)).collect();
        let variance = residual.iter().map(|r| r * r).sum::<f64>() / DIMS as f64;
        // Rounding adds 1/12; the estimate has a relative sd of √(2/3072).
        assert!(
            (variance - (16.0 + 1.0 / 12.0)).abs() < 5.0 * 16.0 * (2.0 / DIMS as f64).sqrt(),
            "{variance}"
        );
    }
}
