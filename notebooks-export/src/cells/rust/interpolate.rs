// One class all the way, for the way is what is shown.
let class = |n| model.config().classes().map(|_| Tensor::zeros(n, DType::U32, &Device::Cpu)).transpose();
let ends = latents::prior(&model, 2, 1., SEED, class(2)?.as_ref())?;
let t: Vec<f64> = (0..9).map(|i| f64::from(i) / 8.).collect();
let (a, b) = (ends.get(0)?, ends.get(1)?);
let way = Tensor::cat(&[latents::lerp(&a, &b, &t)?, latents::slerp(&a, &b, &t)?], 0)?;
sheet(&model.decode(&way, class(18)?.as_ref())?, 9, model.config().bits())?;
