//! The model that a page is of, with its data, the latents of images that were asked for lately, and the directions of attributes.

use super::cached;
use super::request::{Params, Spec};
use crate::args::Compute;
use crate::context::Given;
use crate::directions::{self, FIT, Means};
use crate::draw::draft::Draft;
use crate::hub::Weights;
use crate::progress::Stopped;
use crate::saved;
use crate::session::{Base, Chosen, Named, Picked, Session, Which};
use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use experiments::data::{Dataset, picture};
use experiments::shell;
use flows::Model;
use std::path::PathBuf;
use std::sync::Arc;

/// Requests whose images' latents are kept.
const KEPT: usize = 16;

/// What the model's examples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Images of this shape, [1 or 3, H, W].
    Images([usize; 3]),
    /// Points of the plane.
    Plane,
    /// Vectors of so many numbers.
    Vectors(usize),
}

/// Images as the flow takes them, with their latents.
#[derive(Clone)]
pub struct Encoded {
    /// What a command calls each.
    pub names: Vec<String>,
    /// (B, C, H, W).
    pub x: Tensor,
    /// Labels, if the model is class-conditional.
    pub given: Given,
    /// (B, D).
    pub z: Tensor,
}

/// The directions of the labels.
enum Directions {
    /// Nobody has asked for them.
    Unasked,
    /// Images are being encoded.
    Fitted(Means),
    /// (labels, D).
    Known(Tensor),
}

/// A model with what its page needs.
pub struct Explorer {
    base: Base,
    from: Which,
    model: Arc<Model>,
    folder: PathBuf,
    device: Device,
    kind: Kind,
    data: Option<(Dataset, Named)>,
    labels: Vec<String>,
    directions: Directions,
    recent: Vec<(String, Encoded)>,
}

impl Explorer {
    /// Loads the weights and, where they can be had, the data. Without data the page has samples and pictures that it is given.
    ///
    /// # Errors
    /// When the folder holds no model, or one of examples that have no page.
    pub fn open(weights: Weights, compute: Compute, from: Which) -> Result<Self> {
        let base = Base { weights, class: None, seed: 0, compute, json: false };
        let Session { model, folder, device, .. } = Session::load(&base, PathBuf::new(), "explore")?;
        let (config, name) = (model.config(), &base.weights);
        ensure!(
            config.context().shape(config.shape())?.is_none(),
            "the page gives a model no features, and that of {name} is one of p(x | c): use `flow sample --context`"
        );
        let kind = match *config.shape() {
            [channels @ (1 | 3), height, width] => Kind::Images([channels, height, width]),
            [2] => Kind::Plane,
            [dims] if dims > 2 => Kind::Vectors(dims),
            ref shape => bail!("the model of {name} takes examples of shape {shape:?}, which no page shows"),
        };
        let mut explorer = Self {
            base,
            from,
            model,
            folder,
            device,
            kind,
            data: None,
            labels: Vec::new(),
            directions: Directions::Unasked,
            recent: Vec::new(),
        };
        match explorer.load() {
            Ok(data) => explorer.data = Some(data),
            Err(error) if error.is::<Stopped>() => return Err(error),
            Err(error) => tracing::warn!("{error:#}: the page goes without data"),
        }
        if let (Kind::Images(_), Some((data, _))) = (kind, &explorer.data) {
            explorer.labels = directions::labels(data, &data.train.take(FIT));
        }
        Ok(explorer)
    }

    fn load(&self) -> Result<(Dataset, Named)> {
        let s = self.session(&self.base);
        let data = s.data_of(&self.from, FIT)?;
        let (split, part) = saved::part(&data, self.from.split)?;
        s.fits(split, &data.name)?;
        let named = Named { name: data.name.clone(), split: split.clone(), part };
        Ok((data, named))
    }

    /// What the examples are.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The shape of images.
    ///
    /// # Errors
    /// When the examples are no images.
    pub fn shape(&self) -> Result<[usize; 3]> {
        match self.kind {
            Kind::Images(shape) => Ok(shape),
            _ => bail!("this model takes no images"),
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The weights as they were named.
    pub fn name(&self) -> String {
        self.base.weights.to_string()
    }

    /// The part of the data that is shown.
    pub fn part(&self) -> Option<&Named> {
        self.data.as_ref().map(|(_, part)| part)
    }

    /// The names of the model's classes, if it has any: those of the data, else their numbers.
    pub fn classes(&self) -> Vec<String> {
        let n = self.model.config().classes().unwrap_or(0);
        let names =
            self.data.as_ref().map(|(data, _)| data.classes.as_slice()).filter(|names| names.len() == n);
        names.map_or_else(|| (0..n).map(|class| class.to_string()).collect(), <[String]>::to_vec)
    }

    /// The labels that have directions.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The class that a request asks for, where the model has classes.
    ///
    /// # Errors
    /// When it is none of the model's.
    pub fn class(&self, params: &Params) -> Result<Option<u32>> {
        match (self.model.config().classes(), params.get("class")) {
            (Some(classes), Some(value)) if value.as_str() != Some("") => {
                let number = value
                    .as_str()
                    .and_then(|text| text.parse().ok())
                    .filter(|n: &u32| (*n as usize) < classes);
                ensure!(number.is_some(), "class: choose one of 0 to {}", classes - 1);
                Ok(number)
            }
            _ => Ok(None),
        }
    }

    /// The arguments of a command with this seed and class.
    pub fn base(&self, seed: u64, class: Option<u32>) -> Base {
        Base { seed, class, ..self.base.clone() }
    }

    /// What commands share, with these arguments.
    pub fn session<'b>(&self, base: &'b Base) -> Session<'b> {
        Session {
            base,
            command: "explore",
            context: None,
            model: self.model.clone(),
            folder: self.folder.clone(),
            device: self.device.clone(),
            draft: Draft::new(PathBuf::new()),
        }
    }

    /// Images with their latents, of one request together as a command has them.
    ///
    /// # Errors
    /// When one is not the model's.
    pub fn encoded(&mut self, s: &Session, specs: &[Spec]) -> Result<Encoded> {
        let key = format!("{specs:?} {} {:?}", s.base.seed, s.base.class);
        if let Some(at) = self.recent.iter().position(|(of, _)| *of == key) {
            let known = self.recent.remove(at);
            self.recent.push(known);
        } else {
            let encoded = self.encode(s, specs)?;
            if self.recent.len() == KEPT {
                self.recent.remove(0);
            }
            self.recent.push((key, encoded));
        }
        Ok(self.recent.last().expect("it was put there").1.clone())
    }

    fn encode(&self, s: &Session, specs: &[Spec]) -> Result<Encoded> {
        let shape = self.shape()?;
        let mut chosen = Chosen::default();
        for (i, spec) in specs.iter().enumerate() {
            match (spec, self.part()) {
                (Spec::Data { data }, Some(part)) => s.choose(&mut chosen, part, *data)?,
                (Spec::Data { .. }, None) => {
                    bail!("this page has no data: take a sample or a picture of your own")
                }
                (Spec::Given { png, name }, _) => {
                    ensure!(
                        self.model.config().classes().is_none() || s.base.class.is_some(),
                        "a picture of your own has no label: choose the class that the model takes it for"
                    );
                    let image = picture::decode(&Spec::file(png)?, name)?;
                    let (height, width) = (image.height() as usize, image.width() as usize);
                    ensure!(
                        [height, width] == shape[1..],
                        "{name} is {height} × {width} pixels (height × width), the model takes {} × {}: drop it again",
                        shape[1],
                        shape[2]
                    );
                    chosen.names.push(name.clone());
                    chosen.pixels.extend(picture::bytes(&image, shape[0] == 1));
                    chosen.noise.push(i as u64);
                }
            }
        }
        let Picked { names, x, given } = s.picked(chosen)?;
        let z = s.model.encode(&x, given.context())?;
        let z = s.finite(z, "the latents of this image", "choose another image")?;
        Ok(Encoded { names, x, given, z })
    }

    /// The directions of all labels, (labels, D), or how many images have been encoded for them, and of how many.
    ///
    /// # Errors
    /// When the training images are not the model's.
    pub fn directions(&mut self) -> Result<Result<Tensor, (usize, usize)>> {
        if let (Directions::Unasked, Some((data, _))) = (&self.directions, &self.data) {
            let train = data.train.take(FIT);
            let known = cached::read(&self.folder, &data.revision, &self.labels, self.model.dims());
            self.directions = match known {
                Some(known) => {
                    Directions::Known(known.to_dtype(self.model.params().dtype())?.to_device(&self.device)?)
                }
                None => {
                    let flags = self.labels.iter().map(|label| directions::has(data, &train, label));
                    Directions::Fitted(Means::new(&self.labels, &flags.collect::<Result<Vec<_>>>()?)?)
                }
            };
        }
        Ok(match &self.directions {
            Directions::Known(known) => Ok(known.clone()),
            Directions::Fitted(means) => Err(means.progress()),
            Directions::Unasked => bail!("this page has no data, whose labels have directions"),
        })
    }

    /// Whether there is something to compute while nobody asks.
    pub fn is_working(&self) -> bool {
        matches!(self.directions, Directions::Fitted(_))
    }

    /// Computes a part of what is to be computed.
    ///
    /// # Errors
    /// When it cannot be: then it is not tried again until it is asked for.
    pub fn work(&mut self) -> Result<()> {
        let Directions::Fitted(mut means) = std::mem::replace(&mut self.directions, Directions::Unasked)
        else {
            return Ok(());
        };
        let Some((data, _)) = &self.data else { return Ok(()) };
        if means.step(&self.session(&self.base), &data.train)? {
            self.directions = Directions::Fitted(means);
            return Ok(());
        }
        let known = means.directions()?;
        if !self.base.weights.is_of_the_hub() {
            cached::write(&self.folder, &data.revision, &self.labels, &known);
        }
        let known = known.to_dtype(self.model.params().dtype())?.to_device(&self.device)?;
        self.directions = Directions::Known(known);
        Ok(())
    }

    /// A command with these weights that takes no data.
    pub fn plain(&self, command: &str, more: &[String]) -> String {
        let words = ["flow".to_owned(), command.to_owned(), self.name()];
        shell::line(words.iter().chain(more))
    }

    /// A command with these weights and this page's data, of images by their names.
    pub fn shown(&self, command: &str, images: &[String], more: &[String]) -> String {
        let source = &self.from.source;
        let env = std::env::var_os("FLOW_DATA").map(PathBuf::from);
        // What the environment says need not be said again.
        let folder = source.data.dir.as_ref().filter(|dir| env.as_ref() != Some(dir));
        let flags = [
            ("--recipe", source.recipe.clone()),
            ("--data-set", source.data_set.clone()),
            ("--data", folder.map(|dir| dir.display().to_string())),
            ("--split", self.from.split.map(|part| part.name().to_owned())),
        ];
        let flags = flags.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten();
        let words: Vec<String> = images.iter().chain(more).cloned().chain(flags).collect();
        self.plain(command, &words)
    }
}
