fn sum(layers: &[(String, f64)]) -> f64 {
    layers.iter().map(|layer| layer.1).sum()
}

let steps = latents::trace(&exact, &x, classes.as_ref())?;
let per_dim = -1. / (exact.dims() as f64 * std::f64::consts::LN_2);
let mut layers: Vec<(String, f64)> = Vec::new();
for step in &steps {
    layers.push((step.path.clone(), step.log_det.mean(0)?.to_scalar::<f64>()? * per_dim));
}
let ctx = Ctx::eval().with_context(classes.as_ref());
let prior = exact.terms(&x, ctx)?.prior.mean(0)?.to_scalar::<f64>()? * per_dim;
// The first layers bring pixels to the range of the flow: D log 256 would dwarf all others.
let first = ["dequantize", "rescale", "logit", "flatten", "whiten"];
let (data, flow): (Vec<_>, Vec<_>) = layers.into_iter().partition(|(path, _)| first.contains(&path.as_str()));
println!(
    "{bits_per_dim:.4} bits/dim = {prior:.4} of the prior {:+.4} of the first layers {:+.4} of the {} others",
    sum(&data),
    sum(&flow),
    flow.len()
);
assert!((prior + sum(&data) + sum(&flow) - bits_per_dim).abs() < 1e-9);
let mut largest = flow.clone();
largest.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
for (path, bits) in largest.iter().take(5) {
    println!("{bits:+.4} {path}");
}
let low = flow.iter().fold(0f64, |m, layer| m.min(layer.1));
let high = flow.iter().fold(1e-3f64, |m, layer| m.max(layer.1));
let margin = 0.05 * (high - low);
plotters::evcxr::evcxr_figure((820, 330), |root| {
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption("bits/dim of each layer's log-det, level after level", ("sans-serif", 16))
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d(0f64..flow.len() as f64, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{:.2}", y + 0.))
        .x_desc("layer")
        .y_desc("bits/dim")
        .draw()?;
    let level = |path: &str| path.strip_prefix("level").map_or(0, |rest| usize::from(rest.as_bytes()[0]));
    chart.draw_series(flow.iter().enumerate().map(|(i, (path, bits))| {
        let colour = if level(path) % 2 == 0 { DARK } else { LIGHT };
        Rectangle::new([(i as f64 + 0.1, 0.), (i as f64 + 0.9, *bits)], colour.filled())
    }))?;
    Ok(())
})
