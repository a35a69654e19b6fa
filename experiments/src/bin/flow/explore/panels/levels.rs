//! One image with some levels of its latents drawn anew.

use super::super::answer::{Answer, Image};
use super::super::explorer::{Encoded, Explorer};
use super::super::panel::{Control, Panel};
use super::super::request::Params;
use crate::commands::levels::redrawn;
use crate::session::{doubles, finite_rows};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// What moves it; nothing where the model has one level.
///
/// # Errors
/// When the latents of the model have no levels.
pub fn panel(e: &Explorer) -> Result<Option<Panel>> {
    let model = e.model();
    let none = Tensor::zeros((1, model.dims()), DType::F32, &candle_core::Device::Cpu)?;
    let parts = model.levels(&none)?;
    let named = |(level, part): (usize, &Tensor)| {
        let (_, c, h, w) = part.dims4()?;
        let share = 100. * (c * h * w) as f64 / model.dims() as f64;
        Ok((level, format!("level {level} ({c}×{h}×{w}, {share:.0} %)")))
    };
    let options = parts.iter().enumerate().map(named).collect::<Result<Vec<_>>>()?;
    let mut controls = vec![
        Control::checks("levels", "Draw anew", options, &[parts.len() - 1]),
        Control::slider("temperature", "Temperature", (0., 1.2, 0.05), 0.7),
        Control::seed(),
        Control::image(e, "a", "Image"),
    ];
    controls.extend(Control::class(e, "as labelled"));
    let panel = Panel {
        name: "levels",
        title: "Levels",
        about: "A multi-scale model keeps an image in several levels of latents, level 0 the finest. The chosen ones are drawn anew \
                from the prior and the others kept: what stays is what these hold."
            .to_owned(),
        controls,
        strip: Some("seed"),
        answer,
    };
    Ok((parts.len() > 1).then_some(panel))
}

fn answer(e: &mut Explorer, params: &Params) -> Result<Answer> {
    let (t, seed, class) = (params.number("temperature", 0. ..=2.)?, params.seed()?, e.class(params)?);
    let base = e.base(seed, class);
    let s = e.session(&base);
    let shape = e.shape()?;
    let Encoded { names, x, given, z } = e.encoded(&s, &[params.image("a")?])?;
    let count = s.model.levels(&z)?.len();
    let levels = params.places("levels", count)?;
    let drawn = redrawn(&s, &z, given.context(), &levels, t, seed)?;
    ensure!(finite_rows(&drawn)?[0], "the inverse overflows, the image is not finite: lower the temperature");
    let off = doubles(&(&drawn - &x)?.sqr()?.mean_all()?.reshape(1)?)?[0].sqrt();
    let list = levels.iter().map(usize::to_string).collect::<Vec<_>>();
    let caption = match list.len() {
        0 => "no level drawn anew".to_owned(),
        1 => format!("level {} drawn anew", list[0]),
        _ => format!("levels {} drawn anew", list.join(", ")),
    };
    let images = vec![
        Image::beside(s.bytes(&x)?.concat(), shape, "image"),
        Image::main(s.bytes(&drawn)?.concat(), shape, caption),
    ];
    let mut more = vec!["--draws".to_owned(), "1".to_owned()];
    if !list.is_empty() {
        more.extend(["--together".to_owned(), list.join(",")]);
    }
    more.extend(["--temperature".to_owned(), t.to_string(), "--seed".to_owned(), seed.to_string()]);
    more.extend(class.into_iter().flat_map(|class| ["--class".to_owned(), class.to_string()]));
    more.extend(["--out".to_owned(), "levels.png".to_owned()]);
    Ok(Answer {
        images,
        facts: vec![format!("The image changes by {off:.1} grey levels (root mean square).")],
        commands: vec![e.shown("levels", &names, &more)],
        ..Answer::default()
    })
}
