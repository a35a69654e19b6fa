//! Two images mixed through their latents.

use super::super::answer::{Answer, Image};
use super::super::explorer::{Encoded, Explorer};
use super::super::panel::{Control, Panel};
use super::super::request::Params;
use crate::commands::interpolate::{Way, between};
use crate::session::{brief, doubles};
use anyhow::Result;

/// From one position of the slider to the next.
const STEP: f64 = 0.025;

/// What moves it.
pub fn panel(e: &Explorer) -> Panel {
    let mut controls = vec![
        Control::slider("t", "From A to B", (0., 1., STEP), 0.5),
        Control::choice("way", "Way", &[("arc", "arc"), ("line", "line")]),
        Control::image(e, "a", "Image A"),
        Control::image(e, "b", "Image B"),
    ];
    controls.extend(Control::class(e, "as labelled"));
    Panel {
        name: "mix",
        title: "Mix",
        about: "Both images are encoded, their latents mixed, and the mixture decoded. An arc keeps the length that latents have; on a \
                line the middle has less contrast."
            .to_owned(),
        controls,
        strip: Some("t"),
        answer,
    }
}

fn answer(e: &mut Explorer, params: &Params) -> Result<Answer> {
    let (t, class) = (params.number("t", 0. ..=1.)?, e.class(params)?);
    let way = match params.word("way", &["line", "arc"])? {
        "line" => Way::Line,
        _ => Way::Arc,
    };
    let base = e.base(0, class);
    let s = e.session(&base);
    let shape = e.shape()?;
    let Encoded { names, x, given, z } = e.encoded(&s, &[params.image("a")?, params.image("b")?])?;
    let (mixed, of_mixed) = between(&s, &z, &given, &[t], way)?;
    let bits = doubles(&s.model.bits_per_dim(&mixed, of_mixed.context())?)?[0];
    let mut ends = s.bytes(&x)?.into_iter();
    let mut end = |which: &str| Image::beside(ends.next().unwrap_or_default(), shape, which);
    let images = vec![
        end("A"),
        Image::main(s.bytes(&mixed)?.concat(), shape, format!("t = {}, {bits:.2} bits/dim", brief(t))),
        end("B"),
    ];
    let frames = (1. / STEP).round() as usize + 1;
    let mut more = vec!["--frames".to_owned(), frames.to_string()];
    more.extend(class.into_iter().flat_map(|class| ["--class".to_owned(), class.to_string()]));
    more.extend(["--out".to_owned(), "mix.png".to_owned()]);
    let command = e.shown("interpolate", &names, &more);
    Ok(Answer { images, commands: vec![command], ..Answer::default() })
}
