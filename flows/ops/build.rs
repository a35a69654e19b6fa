//! Translates the CUDA kernels: to PTX with the feature `cuda`, to C on the CPU with `emulate`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(kernels)");
    if cfg!(any(feature = "cuda", feature = "emulate")) {
        println!("cargo::rustc-cfg=kernels");
    }
    // candle's own builder of kernels, so that both find the same compiler and the same GPU.
    #[cfg(feature = "cuda")]
    cudaforge::KernelBuilder::new()
        .source_files(["kernels/flows.cu"])
        .watch(["kernels"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?;
    #[cfg(feature = "emulate")]
    cc::Build::new().file("kernels/emulate.c").opt_level(2).compile("flows_emulated_kernels");
    Ok(())
}
