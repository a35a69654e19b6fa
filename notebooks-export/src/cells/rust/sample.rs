let samples = model.sample(16, 0.7, SEED, labels(&model, 16)?.as_ref())?;
sheet(&samples, 8, model.config().bits())?;
