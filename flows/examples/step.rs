use candle_core::*;
use flows::models::*;
use flows::optim::*;
use flows::*;
use std::time::Instant;
fn main() -> Result<()> {
    let a: Vec<String> = std::env::args().collect();
    let b: usize = a[2].parse().unwrap();
    let g = |levels, depth, width| {
        ModelConfig::Glow(GlowConfig { levels, depth, width, ..GlowConfig::cifar_paper() })
    };
    let c = match a[1].as_str() {
        "k8" => g(3, 8, 128),
        "k32" => g(3, 32, 512),
        "k4" => g(2, 4, 64),
        "k4s" => g(3, 4, 64),
        "nvp" => ModelConfig::RealNvp(RealNvpConfig::cifar_code()),
        "nvps" => {
            ModelConfig::RealNvp(RealNvpConfig { features: 32, blocks: 2, ..RealNvpConfig::cifar_code() })
        }
        _ => ModelConfig::Nice(NiceConfig::mnist_paper()),
    };
    let m = Model::new(c, 3, DType::F32, &Device::Cpu)?;
    let mut sh = vec![b];
    sh.extend(m.shape());
    let x = flows::testing::normal(&sh, 1, &Device::Cpu)?.to_dtype(DType::F32)?;
    let x = (((x.tanh()? / 2.2)? + 0.5)? * 256.)?;
    m.init(&x, None)?;
    let mut opt = Optimizer::new(Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 }, m.params())?;
    let n: usize = a[3].parse().unwrap();
    for i in 0..n {
        let t0 = Instant::now();
        let loss =
            (m.terms(&x, Ctx::train())?.log_prob()?.mean_all()? * (-1. / (m.dims() as f64 * 2f64.ln())))?;
        let t1 = Instant::now();
        let store = loss.backward()?;
        let t2 = Instant::now();
        let grads = collect_grads(m.params(), &store);
        let norm = global_norm(&grads)?;
        opt.step(&grads, 1e-4, 1f64.min(50. / norm))?;
        let t3 = Instant::now();
        println!(
            "{i} loss {:.3} fwd {:?} bwd {:?} opt {:?} : {:.1} img/s",
            loss.to_scalar::<f32>()?,
            t1 - t0,
            t2 - t1,
            t3 - t2,
            b as f64 / (t3 - t0).as_secs_f64()
        );
    }
    Ok(())
}
