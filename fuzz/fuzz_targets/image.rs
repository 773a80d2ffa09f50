//! Reads anything as an image, in both ways there are. Checksums are not compared (`--cfg fuzzing`), so that what is behind them is reached.
#![no_main]

use cryopod::image::read::Reader;
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|image: &[u8]| {
    if let Ok(reader) = Reader::open(image) {
        let _ = reader.pages(1, &|run| {
            // Whoever takes pages relies on this.
            assert!(run.len > 0 && run.bytes.is_none_or(|bytes| bytes.len() as u64 == run.len));
            Ok(())
        });
    }
    if let Ok(reader) = Reader::open(Cursor::new(image)) {
        let _ = reader.list_seeking(&mut |_, _| ());
    }
});
