let model = flows::load(".", &Device::Cpu)?;
println!("{} trained numbers, {} dimensions", model.params().count(), model.dims());
