//! Randomness for passwords, ports and names: the kernel's, read from `/dev/urandom`.

use std::{fmt::Write as _, fs::File, io::Read as _, path::Path};

use crate::error::{Error, IoContext as _};

const SOURCE: &str = "/dev/urandom";

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Error> {
    let path = Path::new(SOURCE);
    let mut bytes = [0; N];
    File::open(path).and_then(|mut source| source.read_exact(&mut bytes)).when("read", path)?;
    Ok(bytes)
}

/// `N` random bytes as `2 * N` lower-case hex digits: nothing in them needs quoting, in a URL or a path.
pub(crate) fn hex<const N: usize>() -> Result<String, Error> {
    let mut text = String::with_capacity(2 * N);
    for byte in bytes::<N>()? {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
