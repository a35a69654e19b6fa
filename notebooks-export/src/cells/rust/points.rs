fn range(points: &[Vec<f64>], axis: usize) -> std::ops::Range<f64> {
    let values = points.iter().map(|p| p[axis]);
    values.clone().fold(f64::INFINITY, f64::min)..values.fold(f64::NEG_INFINITY, f64::max)
}

let mut points: Vec<Vec<f64>> = model
    .sample(2000, 1., SEED, labels(&model, 2000)?.as_ref())?
    .flatten_from(1)?
    .to_dtype(DType::F64)?
    .to_vec2()?;
points.retain(|p| p.iter().all(|v| v.is_finite()));
plotters::evcxr::evcxr_figure((480, 440), |root| {
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(45)
        .build_cartesian_2d(range(&points, 0), range(&points, 1))?;
    chart.configure_mesh().light_line_style(TRANSPARENT).draw()?;
    chart.draw_series(points.iter().map(|p| Circle::new((p[0], p[1]), 1, DARK.filled())))?;
    Ok(())
})
