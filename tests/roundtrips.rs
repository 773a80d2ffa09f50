//! Every fixture goes on after a freeze and a thaw, after two of each, and after a freeze that leaves it running.
#![deny(unsafe_code)]

mod common;
use common::roundtrip;

roundtrip!(heap, "memory/heap.c");
roundtrip!(nanosleep, "blocked/nanosleep.c");
