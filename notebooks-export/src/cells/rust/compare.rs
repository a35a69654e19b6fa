let stored: HashMap<String, Tensor> = Tensor::read_npz("arrays.npz")?.into_iter().collect();
let exact = Model::load_as(".", Some(DType::F64), &Device::Cpu)?;
let x = stored["x"].to_dtype(DType::F64)?;
let classes = stored.get("labels").map(|labels| labels.to_dtype(DType::U32)).transpose()?;
let log_prob = exact.log_prob(&x, classes.as_ref())?;
let difference = (&log_prob - &stored["log_prob"])?.abs()?.max(0)?.to_scalar::<f64>()?;
let bits_per_dim = exact.bits_per_dim(&x, classes.as_ref())?.mean(0)?.to_scalar::<f64>()?;
println!("{} samples, {bits_per_dim:.4} bits/dim; log p(x): largest difference {difference:.1e}", x.dim(0)?);
assert!(difference <= 1e-11 * log_prob.abs()?.max(0)?.to_scalar::<f64>()?);
