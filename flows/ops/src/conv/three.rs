//! 3x3 convolutions of many channels, for what activations are kept as: by Winograd's products, or directly where tiles make
//! products cheaper than the transforms around them.

#[cfg(target_arch = "x86_64")]
use super::direct;
use super::rows::{Sink, Source, Tiles};
use super::winograd;
use crate::gemm::bf16::Way;
use crate::inner::Inner;
use crate::real::Real;
use half::bf16;
use std::ops::Range;

/// A thread's buffers.
pub(crate) type Scratch<T> = winograd::Scratch<T>;

/// An [`Inner`] with its 3x3 convolutions.
pub(crate) trait Three: Inner {
    /// Kernels (O, C, 3, 3), made ready.
    type Kernel: Send + Sync;
    /// A sum of gradients of kernels.
    type KernelGrad: Send + Sync;

    /// Of w (O, C, 3, 3).
    fn kernel(w: &[Self::Real], o: usize, c: usize) -> Self::Kernel;

    /// The convolution of the rows of tiles `range` (counted over all images): from C channels to O, or, with `back`, what takes
    /// the gradient of that convolution's output to its input's, from O to C.
    fn convolve(
        kernel: &Self::Kernel,
        back: bool,
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<Self::Real>,
        source: &impl Source<Self::Real>,
        sink: &mut impl Sink<Self::Real>,
    );

    /// The share of the rows of tiles `range` in the kernel's gradient, from the convolution's input and the gradient of its
    /// output.
    fn kernel_grad(
        channels: (usize, usize),
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<Self::Real>,
        input: &impl Source<Self::Real>,
        grad: &impl Source<Self::Real>,
    ) -> Self::KernelGrad;

    /// The gradient of w (O, C, 3, 3) from all shares, added in order.
    fn finish(parts: Vec<Self::KernelGrad>) -> Vec<Self::Real>;
}

impl<T: Real> Three for T {
    type Kernel = winograd::Kernel<T>;
    type KernelGrad = winograd::KernelGrad<T>;

    fn kernel(w: &[T], o: usize, c: usize) -> Self::Kernel {
        winograd::Kernel::new(w, o, c)
    }
    fn convolve(
        kernel: &Self::Kernel,
        back: bool,
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<T>,
        source: &impl Source<T>,
        sink: &mut impl Sink<T>,
    ) {
        winograd::convolve(kernel, back, t, range, s, source, sink);
    }
    fn kernel_grad(
        (o, c): (usize, usize),
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<T>,
        input: &impl Source<T>,
        grad: &impl Source<T>,
    ) -> Self::KernelGrad {
        let mut sum = winograd::KernelGrad::new(o, c);
        sum.add::<T>(t, range, s, input, grad);
        sum
    }
    fn finish(parts: Vec<Self::KernelGrad>) -> Vec<T> {
        winograd::KernelGrad::finish(&parts)
    }
}

/// Kernels whose factors are rounded.
pub(crate) enum Kernel {
    Winograd(winograd::Kernel<bf16>),
    #[cfg(target_arch = "x86_64")]
    Direct(direct::Kernel),
}

/// A sum of their gradients.
pub(crate) enum KernelGrad {
    Winograd(winograd::KernelGrad<f32>),
    #[cfg(target_arch = "x86_64")]
    Direct(direct::KernelGrad),
}

impl Three for bf16 {
    type Kernel = Kernel;
    type KernelGrad = KernelGrad;

    fn kernel(w: &[f32], o: usize, c: usize) -> Kernel {
        match Way::best() {
            #[cfg(target_arch = "x86_64")]
            Way::Tiles => Kernel::Direct(direct::Kernel::new(w, o, c)),
            _ => Kernel::Winograd(winograd::Kernel::new(w, o, c)),
        }
    }
    fn convolve(
        kernel: &Kernel,
        back: bool,
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<f32>,
        source: &impl Source<f32>,
        sink: &mut impl Sink<f32>,
    ) {
        match kernel {
            Kernel::Winograd(kernel) => winograd::convolve(kernel, back, t, range, s, source, sink),
            #[cfg(target_arch = "x86_64")]
            Kernel::Direct(kernel) => direct::convolve(kernel, back, t, range, source, sink),
        }
    }
    fn kernel_grad(
        (o, c): (usize, usize),
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<f32>,
        input: &impl Source<f32>,
        grad: &impl Source<f32>,
    ) -> KernelGrad {
        #[cfg(target_arch = "x86_64")]
        if Way::best() == Way::Tiles {
            let mut sum = direct::KernelGrad::new(o, c);
            sum.add(t, range, input, grad);
            return KernelGrad::Direct(sum);
        }
        let mut sum = winograd::KernelGrad::new(o, c);
        sum.add::<bf16>(t, range, s, input, grad);
        KernelGrad::Winograd(sum)
    }
    fn finish(parts: Vec<KernelGrad>) -> Vec<f32> {
        let mut winograds = Vec::new();
        #[cfg(target_arch = "x86_64")]
        let mut directs = Vec::new();
        for part in parts {
            match part {
                KernelGrad::Winograd(part) => winograds.push(part),
                #[cfg(target_arch = "x86_64")]
                KernelGrad::Direct(part) => directs.push(part),
            }
        }
        #[cfg(target_arch = "x86_64")]
        if winograds.is_empty() {
            return direct::KernelGrad::finish(&directs);
        }
        winograd::KernelGrad::finish(&winograds)
    }
}
