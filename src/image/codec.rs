//! The state record: a snapshot in postcard, in zstd. Decoding allocates in proportion to the bytes that are really there.

use super::Error;
use super::header::array;
use super::state::Snapshot;
use anyhow::{Context, Result};

/// A state of more than this is refused, in the file and in memory.
pub const STATE_MAX: u64 = 1 << 30;
/// A state may be this large whatever it takes in the file …
const FREE_LEN: u64 = 1 << 20;
/// … and beyond that so many times larger, so that a small file cannot fill the memory.
const RATIO_MAX: u64 = 64;
const HEAD_LEN: usize = 12;
const RAW: u32 = 0;
const ZSTD: u32 = 1;

/// Head and body of the record.
pub fn encode_state(snapshot: &Snapshot, level: i32) -> Result<(Vec<u8>, Vec<u8>)> {
    let raw = postcard::to_stdvec(snapshot).context("encode the state")?;
    anyhow::ensure!(
        raw.len() as u64 <= STATE_MAX,
        "the state takes {} bytes, and an image holds {STATE_MAX}",
        raw.len()
    );
    let compressed = zstd::bulk::compress(&raw, level).context("compress the state")?;
    let raw_len = raw.len() as u64;
    let (codec, body) = match is_plausible(raw_len, compressed.len() as u64) && compressed.len() < raw.len() {
        true => (ZSTD, compressed),
        false => (RAW, raw),
    };
    let mut head = Vec::with_capacity(HEAD_LEN);
    head.extend_from_slice(&codec.to_le_bytes());
    head.extend_from_slice(&raw_len.to_le_bytes());
    Ok((head, body))
}

fn is_plausible(raw_len: u64, body_len: u64) -> bool {
    raw_len <= STATE_MAX && raw_len <= FREE_LEN.max(body_len.saturating_mul(RATIO_MAX))
}

/// Decodes a state whose checksums were compared. It is not validated yet.
pub fn decode_state(head: &[u8], body: &[u8]) -> Result<Snapshot, Error> {
    if head.len() != HEAD_LEN {
        return Err(Error::damaged("the state record has another form"));
    }
    let raw_len = u64::from_le_bytes(array(head, 4));
    if !is_plausible(raw_len, body.len() as u64) {
        return Err(Error::damaged(format!(
            "its state claims {raw_len} bytes in {}",
            body.len()
        )));
    }
    match u32::from_le_bytes(array(head, 0)) {
        RAW if raw_len == body.len() as u64 => from_postcard(body),
        RAW => Err(Error::damaged("its state has another length than it says")),
        ZSTD => from_postcard(&decompress(body, raw_len as usize)?),
        other => Err(Error::Newer {
            what: format!("the state is compressed by method {other}"),
        }),
    }
}

/// zstd data that must give exactly `raw_len` bytes.
pub fn decompress(body: &[u8], raw_len: usize) -> Result<Vec<u8>, Error> {
    let raw = zstd::bulk::decompress(body, raw_len).map_err(|error| Error::damaged(format!("decompress: {error}")))?;
    match raw.len() == raw_len {
        true => Ok(raw),
        false => Err(Error::damaged("compressed data has another length than it says")),
    }
}

fn from_postcard(raw: &[u8]) -> Result<Snapshot, Error> {
    let (snapshot, rest) =
        postcard::take_from_bytes(raw).map_err(|error| Error::damaged(format!("decode the state: {error}")))?;
    match rest.is_empty() {
        true => Ok(snapshot),
        false => Err(Error::damaged(format!("{} bytes follow the state", rest.len()))),
    }
}
