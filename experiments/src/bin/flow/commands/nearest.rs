//! `flow nearest`: samples beside the training images that are nearest to them.

use crate::args::Part;
use crate::draw::samples::to_bytes;
use crate::draw::sheet::{Sheet, check_size};
use crate::session::{Grid, Session, Source, check_temperature, mean, pooled};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use clap::Args;
use experiments::data::Split;
use experiments::limits;
use flows::latents;
use serde_json::json;

/// `nearest`.
#[derive(Args)]
pub struct NearestArgs {
    #[command(flatten)]
    grid: Grid,
    #[command(flatten)]
    source: Source,
    /// Number of samples.
    #[arg(short, long = "number", default_value_t = 6)]
    n: usize,
    /// Number of neighbours of each sample.
    #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    k: u8,
    /// Temperature of the samples.
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    temperature: f64,
}

/// The nearest training images of one image, nearest first: the distance in grey levels, and the place.
type Neighbours = Vec<(f64, usize)>;

/// The k nearest of a split's images to each query, both as visible bytes.
fn neighbours(s: &Session, queries: &Tensor, split: &Split, k: usize) -> Result<Vec<Neighbours>> {
    /// Images that are floats at a time.
    const BLOCK: usize = 2048;
    let n = queries.dim(0)?;
    let mut found = vec![Neighbours::new(); n];
    let bits = s.model.config().bits();
    let [c, h, w] = s.shape()?;
    for first in (0..split.len()).step_by(BLOCK) {
        let end = (first + BLOCK).min(split.len());
        let values: Vec<f32> =
            (first..end).flat_map(|i| split.pixels(i)).map(|p| f32::from(p >> (8 - bits))).collect();
        let seen: Vec<f32> = to_bytes(&values, bits).into_iter().map(f32::from).collect();
        let block = Tensor::from_vec(seen, (end - first, c, h, w), &s.device)?;
        let (places, distances) = latents::nearest(queries, &block, k.min(end - first))?;
        let (places, distances) = (places.to_vec2::<u32>()?, distances.to_vec2::<f32>()?);
        for ((all, places), distances) in found.iter_mut().zip(places).zip(distances) {
            let places = places.into_iter().map(|p| first + p as usize);
            all.extend(distances.into_iter().map(f64::from).zip(places));
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            all.truncate(k);
        }
    }
    Ok(found)
}

/// Samples beside the training images nearest to them, and how near test images are.
///
/// # Errors
/// When the data are not the model's.
pub fn run(args: &NearestArgs) -> Result<()> {
    /// Test images whose nearest neighbours are measured, too, for comparison with those of the samples.
    const COMPARED: usize = 50;
    let (s, shape) = Session::sheet(&args.grid, "nearest")?;
    ensure!(args.n > 0, "-n 0: draw at least one sample");
    limits::drawn(s.model.config(), args.n, "-n", s.device.is_cpu())?;
    check_size(args.n, 1 + usize::from(args.k), shape, args.grid.scale)?;
    let given = s.given(args.n)?;
    let data = s.data(&args.source, Some(Part::Train))?;
    s.fits(&data.train, &data.name)?;
    let (n, of) = (args.n, data.train.len());
    let k = usize::from(args.k).min(of);
    pooled(|| {
        check_temperature(args.temperature)?;
        let x = s.model.sample(args.n, args.temperature, args.grid.base.seed, given.context())?;
        let x = s.finite(x, "the samples", "give a smaller --temperature, or another --seed")?;
        let as_seen = |x: &Tensor| -> Result<Tensor> {
            let values: Vec<f32> = s.bytes(x)?.concat().into_iter().map(f32::from).collect();
            Ok(Tensor::from_vec(values, x.dims(), &s.device)?)
        };
        tracing::info!("comparing with {of} training images");
        let found = neighbours(&s, &as_seen(&x)?, &data.train, k)?;
        let test = data.test.take(COMPARED);
        let test_x = s.dequantise(&test)?;
        let of_tests = neighbours(&s, &as_seen(&test_x)?, &data.train, 1)?;
        let first = |all: &[Neighbours]| all.iter().map(|near| near[0].0).collect::<Vec<_>>();
        let (of_samples, of_test) = (mean(&first(&found)), mean(&first(&of_tests)));

        let mut cells: Vec<_> = s.cells(&x)?.into_iter().map(|sample| vec![sample]).collect();
        for (row, near) in cells.iter_mut().zip(&found) {
            let places: Vec<usize> = near.iter().map(|n| n.1).collect();
            let neighbours = s.dequantise(&data.train.select(&places))?;
            row.extend(s.captioned(&neighbours, near.iter().map(|n| format!("{:.1}", n.0)))?);
        }
        let sheet = Sheet {
            notes: vec![
                "under each neighbour its distance: root-mean-square grey levels".to_owned(),
                format!("nearest of {of} to a sample: {of_samples:.1}; to a test image: {of_test:.1}"),
            ],
            columns: std::iter::once("sample".to_owned()).chain((1..=k).map(|i| i.to_string())).collect(),
            cells,
            ..s.blank(&args.grid, "Samples and their nearest training images")?
        };
        sheet.write(s.draft.drawn())?;
        let lines = [format!(
            "the nearest of {of} training images is {of_samples:.2} grey levels from a sample (root mean square, mean of {n}), \
             {of_test:.2} from a test image (mean of {})",
            test.len()
        )];
        let figures = json!({
            "samples": n, "k": k, "temperature": args.temperature, "training_images": of,
            "mean_distance": of_samples, "test_images": test.len(), "test_mean_distance": of_test,
        });
        let (distances, places): (Vec<f64>, Vec<u32>) =
            found.iter().flatten().map(|&(distance, place)| (distance, place as u32)).unzip();
        let tensors = vec![
            ("samples", x),
            ("places", Tensor::from_vec(places, (args.n, k), &s.device)?),
            ("distances", Tensor::from_vec(distances, (args.n, k), &s.device)?),
            ("test_distances", Tensor::new(first(&of_tests), &s.device)?),
        ];
        s.finish(figures, tensors, &lines)
    })
}
