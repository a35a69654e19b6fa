//! Samples at a temperature.

use super::super::answer::{Answer, Image};
use super::super::explorer::Explorer;
use super::super::panel::{Control, Panel};
use super::super::request::Params;
use crate::session::finite_rows;
use anyhow::Result;

/// Samples on the page.
const SHOWN: usize = 16;

/// What moves it.
pub fn panel(e: &Explorer) -> Panel {
    let mut controls =
        vec![Control::slider("temperature", "Temperature", (0., 1.2, 0.05), 0.7), Control::seed()];
    controls.extend(Control::class(e, "all in turn"));
    Panel {
        name: "samples",
        title: "Samples",
        about: "Noise, decoded. The temperature scales the noise: low ones give clean, similar images, 1 is the model itself. Click a \
                sample to mix it, or to change its attributes and levels: it becomes image A, and the image before it B."
            .to_owned(),
        controls,
        strip: Some("temperature"),
        answer,
    }
}

fn answer(e: &mut Explorer, params: &Params) -> Result<Answer> {
    let (t, seed, class) = (params.number("temperature", 0. ..=2.)?, params.seed()?, e.class(params)?);
    let base = e.base(seed, class);
    let s = e.session(&base);
    let shape = e.shape()?;
    let x = s.model.sample(SHOWN, t, seed, s.labels(SHOWN)?.as_ref())?;
    let (bytes, finite) = (s.bytes(&x)?, finite_rows(&x)?);
    let lost = finite.iter().filter(|finite| !**finite).count();
    let images = bytes.into_iter().zip(finite).enumerate().filter(|(_, (_, finite))| *finite);
    let images = images.map(|(i, (bytes, _))| Image {
        file: Some(format!("samples/{i:05}.png")),
        ..Image::main(bytes, shape, "")
    });
    let mut more = vec!["-n".to_owned(), SHOWN.to_string()];
    more.extend(class.into_iter().flat_map(|class| ["--class".to_owned(), class.to_string()]));
    more.extend(["--temperature".to_owned(), t.to_string(), "--seed".to_owned(), seed.to_string()]);
    let out = |to: &str| [&more[..], &["--out".to_owned(), to.to_owned()]].concat();
    let facts =
        (lost > 0).then(|| format!("{lost} of {SHOWN} samples are not finite: lower the temperature"));
    Ok(Answer {
        images: images.collect(),
        facts: facts.into_iter().collect(),
        commands: vec![e.plain("sample", &out("samples"))],
        ..Answer::default()
    })
}
