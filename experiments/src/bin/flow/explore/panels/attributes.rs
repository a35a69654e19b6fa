//! Attributes as sliders that add up.

use super::super::answer::{Answer, Image};
use super::super::explorer::{Encoded, Explorer};
use super::super::panel::{Control, Panel};
use super::super::request::Params;
use crate::commands::attribute::shifted;
use crate::session::{brief, doubles, finite_rows};
use anyhow::{Result, ensure};

/// The end of a slider: a direction is added or taken away so many times.
const MOST: f64 = 3.;

/// What moves it; nothing where the data have no labels.
pub fn panel(e: &Explorer) -> Option<Panel> {
    let mut controls = vec![
        Control::sliders("strengths", "Add", e.labels(), (-MOST, MOST, 0.25)),
        Control::image(e, "a", "Image"),
    ];
    controls.extend(Control::class(e, "as labelled"));
    let panel = Panel {
        name: "attributes",
        title: "Attributes",
        about: "What a label changes: the mean latent of training images with it minus that of images without, added to the image's \
                latents. The sliders add up; 1 is the difference of the means."
            .to_owned(),
        controls,
        strip: Some("strengths"),
        answer,
    };
    (!e.labels().is_empty()).then_some(panel)
}

fn answer(e: &mut Explorer, params: &Params) -> Result<Answer> {
    let class = e.class(params)?;
    let labels = e.labels().to_vec();
    let strengths = params.strengths("strengths", &labels, -MOST..=MOST)?;
    let directions = match e.directions()? {
        Ok(directions) => directions,
        Err(progress) => return Ok(Answer { waiting: Some(progress), ..Answer::default() }),
    };
    let base = e.base(0, class);
    let s = e.session(&base);
    let shape = e.shape()?;
    let Encoded { names, x, given, z } = e.encoded(&s, &[params.image("a")?])?;
    let moved = s.model.decode(&shifted(&z, &directions, &strengths)?, given.context())?;
    ensure!(
        finite_rows(&moved)?[0],
        "the inverse overflows this far along, the image is not finite: move the sliders towards 0"
    );
    let bits = doubles(&s.model.bits_per_dim(&moved, given.context())?)?[0];
    let used: Vec<(&String, f64)> = labels.iter().zip(strengths).filter(|(_, s)| *s != 0.).collect();
    let said: Vec<String> =
        used.iter().map(|(label, s)| format!("{label} {}{}", sign(*s), brief(s.abs()))).collect();
    let caption = if said.is_empty() { "unchanged".to_owned() } else { said.join(", ") };
    let images = vec![
        Image::beside(s.bytes(&x)?.concat(), shape, "image"),
        Image::main(s.bytes(&moved)?.concat(), shape, format!("{caption}: {bits:.2} bits/dim")),
    ];
    let (first, others) = match used.split_first() {
        Some((first, others)) => (*first, others),
        None => ((&labels[0], 0.), &[][..]),
    };
    let mut more = vec!["--label".to_owned(), first.0.clone(), format!("--strengths={}", first.1)];
    more.extend(others.iter().flat_map(|(label, s)| ["--also".to_owned(), format!("{label}:{s}")]));
    more.extend(class.into_iter().flat_map(|class| ["--class".to_owned(), class.to_string()]));
    more.extend(["--out".to_owned(), "attribute.png".to_owned()]);
    Ok(Answer { images, commands: vec![e.shown("attribute", &names, &more)], ..Answer::default() })
}

fn sign(v: f64) -> char {
    if v < 0. { '−' } else { '+' }
}
