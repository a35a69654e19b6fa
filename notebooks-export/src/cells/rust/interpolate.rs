let ends = latents::prior(&model, 2, SEED)?;
let t: Vec<f64> = (0..9).map(|i| f64::from(i) / 8.).collect();
let (a, b) = (ends.get(0)?, ends.get(1)?);
let way = Tensor::cat(&[latents::lerp(&a, &b, &t)?, latents::slerp(&a, &b, &t)?], 0)?;
// One class all the way, for the way is what is shown.
let class = model.config().classes().map(|_| Tensor::zeros(18, DType::U32, &Device::Cpu)).transpose()?;
sheet(&model.decode(&way, class.as_ref())?, 9, model.config().bits())?;
