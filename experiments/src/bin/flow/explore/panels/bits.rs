//! The bits of one image: how many, where they are, and how exactly it comes back from its latents.

use super::super::answer::{Answer, Image};
use super::super::explorer::{Encoded, Explorer};
use super::super::panel::{Control, Panel};
use super::super::request::Params;
use crate::commands::reconstruct::heat;
use crate::session::{brief, doubles};
use anyhow::Result;
use flows::latents::{self, Reconstruction};

/// What moves it.
pub fn panel(e: &Explorer) -> Panel {
    let mut controls = vec![Control::image(e, "a", "Image")];
    controls.extend(Control::class(e, "as labelled"));
    Panel {
        name: "bits",
        title: "Bits",
        about: "How many bits the model needs for an image, where they are, and how exactly the image comes back from its latents. Try \
                a picture of your own: what is unlike the training images costs more."
            .to_owned(),
        controls,
        strip: None,
        answer,
    }
}

fn answer(e: &mut Explorer, params: &Params) -> Result<Answer> {
    let class = e.class(params)?;
    let base = e.base(0, class);
    let s = e.session(&base);
    let shape = e.shape()?;
    let Encoded { names, x, given, .. } = e.encoded(&s, &[params.image("a")?])?;
    let per_dim = doubles(&s.model.bits_per_dim(&x, given.context())?)?[0];
    let Reconstruction { x: back, error, .. } = latents::reconstruct(&s.model, &x, given.context())?;
    let error = doubles(&error)?[0];
    let (grey, low, high) = heat(&latents::bits_by_position(&s.model, &x, given.context())?)?.swap_remove(0);
    let (given, again) = (s.bytes(&x)?.concat(), s.bytes(&back)?.concat());
    let exact = if given == again { "every byte is the same" } else { "not every byte is the same" };
    let total = per_dim * s.model.dims() as f64;
    let images = vec![
        Image::beside(given, shape, "image"),
        Image::beside(again, shape, "decoded from its latents"),
        Image::beside(grey.repeat(shape[0]), shape, "where its bits are: white is most"),
    ];
    let facts = vec![
        format!("{per_dim:.4} bits/dim: {:.0} bytes for the whole image.", total / 8.),
        format!("Encoded and decoded it is off by at most {} of a grey level; {exact}.", brief(error)),
        format!("The positions of the image cost from {} to {} bits each.", brief(low), brief(high)),
    ];
    let mut more: Vec<String> =
        class.into_iter().flat_map(|class| ["--class".to_owned(), class.to_string()]).collect();
    more.extend(["--out".to_owned(), "bits.png".to_owned()]);
    Ok(Answer { images, facts, commands: vec![e.shown("reconstruct", &names, &more)], ..Answer::default() })
}
