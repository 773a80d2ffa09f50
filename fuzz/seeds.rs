//! Small images to begin with, in fuzz/corpus/image.

#[path = "../tests/image_sample/mod.rs"]
mod image_sample;

use anyhow::Result;
use cryopod::image::write::Compression;
use std::fs;
use std::path::Path;

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/image");
    fs::create_dir_all(&corpus)?;
    let seeds = [("tiny", 1, Compression::Auto), ("raw", 2, Compression::None), ("zstd", 200, Compression::Zstd(3))];
    for (name, pages, compression) in seeds {
        fs::write(corpus.join(name), image_sample::image(pages, 1, compression, 1).0)?;
    }
    Ok(())
}
