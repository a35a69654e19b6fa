//! CUPTI, as little of it as [`super::trace`] needs.

use candle_core::cuda::cudarc::driver::sys;
use candle_core::{Result, bail};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, OnceLock};

/// CUPTI's numbers, the same in all its versions (cupti_activity.h, cupti_result.h).
const SUCCESS: i32 = 0;
const MEMCPY: u32 = 1;
const MEMSET: u32 = 2;
const CONCURRENT_KERNEL: u32 = 10;
const KINDS: [u32; 3] = [MEMCPY, MEMSET, CONCURRENT_KERNEL];
/// Buffers that are not full come back, too.
const FORCED: u32 = 1;
/// Bytes of a buffer of records: some twenty thousand of them.
const ROOM: usize = 4 << 20;

/// How a record of [`KINDS`] begins, in all versions: `start` and `end` are nanoseconds, 0 where none were taken.
#[repr(C)]
struct Activity {
    kind: u32,
    _of_its_kind: [u32; 3],
    start: u64,
    end: u64,
}

type Request = unsafe extern "C" fn(*mut *mut u8, *mut usize, *mut usize);
type Complete = unsafe extern "C" fn(*mut c_void, u32, *mut u8, usize, usize);

/// What is called of it. The library stays open: it calls back.
struct Cupti {
    enable: unsafe extern "C" fn(u32) -> i32,
    disable: unsafe extern "C" fn(u32) -> i32,
    flush: unsafe extern "C" fn(u32) -> i32,
    next: unsafe extern "C" fn(*mut u8, usize, *mut *mut Activity) -> i32,
    _library: libloading::Library,
}

static CUPTI: OnceLock<std::result::Result<Cupti, String>> = OnceLock::new();
/// Begin and end of what was done.
static DONE: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

unsafe extern "C" fn request(buffer: *mut *mut u8, size: *mut usize, most: *mut usize) {
    // Of u64, for it has to be aligned so.
    let room = Box::into_raw(vec![0u64; ROOM / 8].into_boxed_slice());
    // SAFETY: CUPTI passes places to write to; no limit on the number of records is 0.
    unsafe {
        *buffer = room.cast();
        *size = ROOM;
        *most = 0;
    }
}

unsafe extern "C" fn complete(_: *mut c_void, _: u32, buffer: *mut u8, _: usize, valid: usize) {
    // A buffer comes back to whom it was asked from.
    let room = std::ptr::slice_from_raw_parts_mut(buffer.cast::<u64>(), ROOM / 8);
    if let (Some(Ok(cupti)), Ok(mut done)) = (CUPTI.get(), DONE.lock()) {
        let mut record = null_mut();
        // SAFETY: the records in the buffer begin as `Activity` does if they are of `KINDS`, the only ones asked for.
        unsafe {
            while (cupti.next)(buffer, valid, &mut record) == SUCCESS {
                if KINDS.contains(&(*record).kind) {
                    done.push(((*record).start, (*record).end));
                }
            }
        }
    }
    // SAFETY: `request` made it, of this size.
    drop(unsafe { Box::from_raw(room) });
}

fn open() -> std::result::Result<Cupti, String> {
    let mut version = 0;
    // SAFETY: the number is written.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| e.to_string())?;
    // One of another generation than the driver may break down instead of saying so.
    let name = format!("libcupti.so.{}", version / 1000);
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(std::path::PathBuf::from);
    let homes = homes.chain(["/usr/local/cuda".into()]).map(|h| h.join("extras/CUPTI/lib64").join(&name));
    let library = std::iter::once(name.clone().into())
        .chain(homes)
        // SAFETY: CUDA's own library, which does nothing when it is loaded.
        .find_map(|path| unsafe { libloading::Library::new(path) }.ok())
        .ok_or_else(|| format!("{name} is not found: add its folder to LD_LIBRARY_PATH"))?;
    // SAFETY: the types are those of CUPTI's headers.
    unsafe {
        let missing = |e: libloading::Error| format!("{name}: {e}");
        let register = *library
            .get::<unsafe extern "C" fn(Request, Complete) -> i32>(b"cuptiActivityRegisterCallbacks\0")
            .map_err(missing)?;
        let cupti = Cupti {
            enable: *library.get(b"cuptiActivityEnable\0").map_err(missing)?,
            disable: *library.get(b"cuptiActivityDisable\0").map_err(missing)?,
            flush: *library.get(b"cuptiActivityFlushAll\0").map_err(missing)?,
            next: *library.get(b"cuptiActivityGetNextRecord\0").map_err(missing)?,
            _library: library,
        };
        match register(request, complete) {
            SUCCESS => Ok(cupti),
            code => Err(format!("{name} refuses to trace (error {code})")),
        }
    }
}

/// The first code that is none of success.
fn failure<const N: usize>(codes: [i32; N]) -> Option<i32> {
    codes.into_iter().find(|&code| code != SUCCESS)
}

/// A stretch of time in which it notes what the GPU does. There is one at a time.
pub(super) struct Tracing {
    cupti: &'static Cupti,
    _mine: Option<MutexGuard<'static, ()>>,
}

impl Tracing {
    /// Begins.
    pub(super) fn begin() -> Result<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _mine = ONE_AT_A_TIME.lock().ok();
        let cupti = match CUPTI.get_or_init(open) {
            Ok(cupti) => cupti,
            Err(why) => bail!("{why}"),
        };
        // Whatever happens, it ends.
        let tracing = Self { cupti, _mine };
        // SAFETY: callbacks are registered.
        if let Some(code) = failure(KINDS.map(|kind| unsafe { (cupti.enable)(kind) })) {
            bail!("CUPTI refuses to trace (error {code})")
        }
        Ok(tracing)
    }

    /// Begin and end, in nanoseconds, of all that the GPU did. It is done with everything.
    pub(super) fn end(self) -> Result<Vec<(u64, u64)>> {
        // SAFETY: buffers come back to `complete`.
        let code = unsafe { (self.cupti.flush)(FORCED) };
        let done = DONE.lock().map(|mut done| std::mem::take(&mut *done)).unwrap_or_default();
        if code != SUCCESS {
            bail!("CUPTI gives back nothing (error {code})")
        }
        if done.is_empty() {
            bail!("CUPTI saw nothing that the GPU did")
        }
        Ok(done)
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // SAFETY: what was not enabled is not its concern.
        let _ = KINDS.map(|kind| unsafe { (self.cupti.disable)(kind) });
    }
}
