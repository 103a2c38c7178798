//! Pictures: small PNG files that depend on what they were asked for, and on nothing else.
//!
//! Written out rather than taken from a library: a palette, one block that is not compressed, and two checksums are all
//! of PNG that is needed. None is as large as it was asked to be: the longer side has [`SIDE`] pixels, the shape is right.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::random::mix;

/// Pixels of the longer side.
const SIDE: u32 = 128;
/// Pixels of the longest side that can be asked for.
const LONGEST: u32 = 16_384;
/// Colours of a picture.
const COLOURS: u32 = 16;
/// The most bytes of a block that is not compressed.
const BLOCK: usize = 0xffff;

/// A picture that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// To be fetched, from this host; `None`: it comes with the reply.
    pub(crate) at: Option<String>,
}

impl Picture {
    /// `WIDTHxHEIGHT` or `auto`, scaled down.
    pub(crate) fn of_size(size: &str) -> Option<Self> {
        let (width, height) = if size == "auto" {
            (1, 1)
        } else {
            let (width, height) = size.split_once('x')?;
            (side(width, LONGEST)?, side(height, LONGEST)?)
        };
        let longer = width.max(height);
        let scaled = |side: u32| (side * SIDE / longer).max(1);
        Some(Self { width: scaled(width), height: scaled(height), at: None })
    }

    /// What the reply's `data` holds for it.
    pub(crate) fn datum(&self, asked: &str) -> (&'static str, String) {
        let seed = hash(asked);
        match &self.at {
            Some(host) => {
                let Self { width, height, .. } = self;
                ("url", format!("http://{host}/images/{seed:016x}-{width}x{height}.png"))
            }
            None => ("b64_json", STANDARD.encode(png(seed, self.width, self.height))),
        }
    }
}

/// A number of pixels, at most so many.
fn side(text: &str, most: u32) -> Option<u32> {
    text.parse().ok().filter(|side| (1..=most).contains(side))
}

/// The file that this path names, if it is one of [`Picture::datum`]'s.
pub(crate) fn file(path: &str) -> Option<Vec<u8>> {
    let name = path.strip_prefix("/images/")?.strip_suffix(".png")?;
    let (seed, size) = name.split_once('-')?;
    let seed = u64::from_str_radix(seed, 16).ok()?;
    let (width, height) = size.split_once('x')?;
    Some(png(seed, side(width, SIDE)?, side(height, SIDE)?))
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Bands of colours between two that are never dark, at an angle.
fn png(seed: u64, width: u32, height: u32) -> Vec<u8> {
    let [r, g, b, r2, g2, b2, across, down] = mix(seed).to_be_bytes();
    let (across, down) = (u32::from(across) % 7 + 1, u32::from(down) % 7 + 1);
    let mut palette = Vec::new();
    for step in 0..COLOURS {
        for (from, to) in [(r, r2), (g, g2), (b, b2)] {
            let between = (u32::from(from) * (COLOURS - 1 - step) + u32::from(to) * step) / (COLOURS - 1);
            palette.push(u8::try_from(96 + between * 159 / 255).unwrap_or(u8::MAX));
        }
    }
    let mut pixels = Vec::new();
    for y in 0..height {
        // Each line begins with the number of its filter: none.
        pixels.push(0);
        pixels.extend((0..width).map(|x| u8::try_from((x * across + y * down) / 8 % COLOURS).unwrap_or(0)));
    }
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    // Eight bits a pixel, a palette, and the only compression, filters and order there are.
    header.extend([8, 3, 0, 0, 0]);

    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in
        [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib(&pixels)), (b"IEND", Vec::new())]
    {
        file.extend(length(&data).to_be_bytes());
        let begin = file.len();
        file.extend(kind);
        file.extend(data);
        let checksum = crc32fast::hash(&file[begin..]);
        file.extend(checksum.to_be_bytes());
    }
    file
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// A zlib stream that is not compressed.
fn zlib(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks = data.chunks(BLOCK);
    let last = blocks.len().saturating_sub(1);
    for (nr, block) in blocks.enumerate() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(u8::from(nr == last));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(block);
    }
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    out.extend((b << 16 | a).to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_their_shape() {
        for (size, scaled) in [
            ("auto", (128, 128)),
            ("1024x1024", (128, 128)),
            ("1536x1024", (128, 85)),
            ("1x9999", (1, 128)),
            ("16x16", (128, 128)),
        ] {
            let picture = Picture::of_size(size).unwrap();
            assert_eq!((picture.width, picture.height), scaled, "{size}");
        }
        for size in ["", "x", "0x1", "1x", "big", "99999x1", "-1x1"] {
            assert_eq!(Picture::of_size(size), None, "{size}");
        }
    }

    #[test]
    fn a_picture_depends_on_what_was_asked() {
        let picture = Picture::of_size("auto").unwrap();
        assert_eq!(picture.datum("a"), picture.datum("a"));
        assert_ne!(picture.datum("a"), picture.datum("b"));
    }

    #[test]
    fn a_file_is_found_by_its_url_alone() {
        let picture = Picture { at: Some("h:1".to_owned()), ..Picture::of_size("3x2").unwrap() };
        let (field, url) = picture.datum("a");
        assert_eq!(field, "url");
        let bytes = file(url.strip_prefix("http://h:1").unwrap()).unwrap();
        assert_eq!(bytes, png(hash("a"), 128, 85));
        for path in [
            "/images/x-1x1.png",
            "/images/0-999x1.png",
            "/images/0-0x1.png",
            "/images/0-1x1",
            "/",
            "/images/",
        ] {
            assert_eq!(file(path), None, "{path}");
        }
    }

    /// The parts of a PNG, their checksums looked at.
    fn parts(file: &[u8]) -> Vec<(&[u8], &[u8])> {
        let mut rest = file.strip_prefix(b"\x89PNG\r\n\x1a\n").unwrap();
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            let (kind, data) = (&rest[4..8], &rest[8..8 + length]);
            let checksum = crc32fast::hash(&rest[4..8 + length]).to_be_bytes();
            assert_eq!(rest[8 + length..12 + length], checksum);
            parts.push((kind, data));
            rest = &rest[12 + length..];
        }
        parts
    }

    #[test]
    fn the_file_is_a_png() {
        for (width, height) in [(1, 1), (128, 85), (600, 600)] {
            let file = png(7, width, height);
            let parts = parts(&file);
            let kinds: Vec<&[u8]> = parts.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds, [b"IHDR", b"PLTE", b"IDAT", b"IEND"]);
            assert_eq!(parts[0].1[..8], [width.to_be_bytes(), height.to_be_bytes()].concat());
            assert_eq!(parts[1].1.len(), 48);
            assert!(parts[1].1.iter().all(|part| *part >= 96), "too dark");
            let blocks = (width as usize + 1) * height as usize;
            assert_eq!(parts[2].1.len(), 2 + blocks.div_ceil(BLOCK) * 5 + blocks + 4);
        }
    }
}
