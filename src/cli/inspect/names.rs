//! Numbers of the kernel as people know them.

/// A signal's name; real-time signals count from glibc's SIGRTMIN, which leaves two to its threads (signal(7)).
pub fn signal(number: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    match number {
        1..=31 => format!("SIG{}", NAMES[number as usize - 1]),
        34 => "SIGRTMIN".into(),
        35..=64 => format!("SIGRTMIN+{}", number - 34),
        _ => format!("signal {number}"),
    }
}

/// The signals of a mask: bit 0 is signal 1.
pub fn signals(mask: u64) -> Vec<String> {
    (1..=64)
        .filter(|number| mask >> (number - 1) & 1 == 1)
        .map(signal)
        .collect()
}

/// SIG_DFL, SIG_IGN or an address.
pub fn handler(handler: u64) -> String {
    match handler {
        0 => "default".into(),
        1 => "ignored".into(),
        address => format!("{address:#x}"),
    }
}

/// SA_* (sigaction(2); include/uapi/asm-generic/signal-defs.h).
pub fn signal_flags(flags: u64) -> Vec<String> {
    const NAMES: [(u64, &str); 9] = [
        (0x1, "SA_NOCLDSTOP"),
        (0x2, "SA_NOCLDWAIT"),
        (0x4, "SA_SIGINFO"),
        (0x800, "SA_EXPOSE_TAGBITS"),
        (0x0400_0000, "SA_RESTORER"),
        (0x0800_0000, "SA_ONSTACK"),
        (0x1000_0000, "SA_RESTART"),
        (0x4000_0000, "SA_NODEFER"),
        (0x8000_0000, "SA_RESETHAND"),
    ];
    bits(flags, &NAMES)
}

/// O_* of open(2) as fcntl(F_GETFL) shows them: four of them have other numbers on ARM (arch/arm*/include/uapi/asm/fcntl.h).
pub fn open_flags(flags: u32, machine: u16) -> Vec<String> {
    const COMMON: [(u64, &str); 7] = [
        (0o2000, "O_APPEND"),
        (0o4000, "O_NONBLOCK"),
        (0o4010000, "O_SYNC"),
        (0o10000, "O_DSYNC"),
        (0o20000, "O_ASYNC"),
        (0o1000000, "O_NOATIME"),
        (0o10000000, "O_PATH"),
    ];
    const GENERIC: [(u64, &str); 4] = [
        (0o40000, "O_DIRECT"),
        (0o100000, "O_LARGEFILE"),
        (0o200000, "O_DIRECTORY"),
        (0o400000, "O_NOFOLLOW"),
    ];
    const ARM: [(u64, &str); 4] = [
        (0o40000, "O_DIRECTORY"),
        (0o100000, "O_NOFOLLOW"),
        (0o200000, "O_DIRECT"),
        (0o400000, "O_LARGEFILE"),
    ];
    let access = match flags & 3 {
        0 => "O_RDONLY",
        1 => "O_WRONLY",
        2 => "O_RDWR",
        _ => "access mode 3",
    };
    let others = if matches!(machine, 40 | 183) { ARM } else { GENERIC };
    let mut names = vec![access.to_owned()];
    names.extend(bits(u64::from(flags & !3), &[&COMMON[..], &others].concat()));
    names
}

/// Names of bits, the rest as a number.
fn bits(mut value: u64, table: &[(u64, &str)]) -> Vec<String> {
    let mut names = Vec::new();
    for &(bit, name) in table {
        if value & bit == bit {
            names.push(name.to_owned());
            value &= !bit;
        }
    }
    if value != 0 {
        names.push(format!("{value:#x}"));
    }
    names
}

/// CLOCK_* of clock_gettime(2); negative numbers are clocks of processes and threads.
pub fn clock(number: i32) -> String {
    const NAMES: [&str; 12] = [
        "CLOCK_REALTIME",
        "CLOCK_MONOTONIC",
        "CLOCK_PROCESS_CPUTIME_ID",
        "CLOCK_THREAD_CPUTIME_ID",
        "CLOCK_MONOTONIC_RAW",
        "CLOCK_REALTIME_COARSE",
        "CLOCK_MONOTONIC_COARSE",
        "CLOCK_BOOTTIME",
        "CLOCK_REALTIME_ALARM",
        "CLOCK_BOOTTIME_ALARM",
        "CLOCK_SGI_CYCLE",
        "CLOCK_TAI",
    ];
    let name = usize::try_from(number).ok().and_then(|number| NAMES.get(number));
    name.map_or_else(|| format!("clock {number}"), |name| (*name).into())
}

/// RLIMIT_* (include/uapi/asm-generic/resource.h).
pub fn resource(number: u32) -> String {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    match NAMES.get(number as usize) {
        Some(name) => format!("RLIMIT_{name}"),
        None => format!("limit {number}"),
    }
}

/// Bytes of a name for a terminal: nothing that an image holds may control it.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for character in String::from_utf8_lossy(bytes).chars() {
        match character.is_control() || is_format(character) {
            true => text.extend(character.escape_unicode()),
            false => text.push(character),
        }
    }
    text
}

/// Characters that turn or hide text around them (Unicode, Bidi_Control and zero width).
fn is_format(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A number of bytes in binary units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 99.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// A length of time.
pub fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.3} s", ns as f64 / 1e9),
    }
}

/// A moment of CLOCK_REALTIME in RFC 3339, in UTC and whole seconds.
pub fn moment(realtime_ns: i64) -> String {
    let seconds = realtime_ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of days since 1970: Howard Hinnant's civil_from_days(), <https://howardhinnant.github.io/date_algorithms.html>.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468; // since 0000-03-01
    let era = shifted.div_euclid(146_097); // of 400 years
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_names() {
        assert_eq!(
            [1, 31, 33, 34, 64].map(signal),
            ["SIGHUP", "SIGSYS", "signal 33", "SIGRTMIN", "SIGRTMIN+30"]
        );
        assert_eq!(signals(0b101), ["SIGHUP", "SIGQUIT"]);
    }

    #[test]
    fn flags_of_open_depend_on_the_machine() {
        assert_eq!(open_flags(0o240001, 62), ["O_WRONLY", "O_DIRECT", "O_DIRECTORY"]);
        assert_eq!(open_flags(0o240001, 183), ["O_WRONLY", "O_DIRECTORY", "O_DIRECT"]);
        assert_eq!(open_flags(0o4010002, 62), ["O_RDWR", "O_SYNC"]);
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(951_782_400_000_000_000), "2000-02-29T00:00:00Z");
        assert_eq!(moment(1_700_000_000_999_999_999), "2023-11-14T22:13:20Z");
        assert_eq!(moment(-1), "1969-12-31T23:59:59Z");
        assert_eq!(moment(i64::MIN), "1677-09-21T00:12:43Z");
    }

    #[test]
    fn sizes_are_short() {
        let sizes = [0, 1023, 1024, 1536, 100 << 10, (1 << 20) - 1, 1 << 30, u64::MAX];
        let expected = [
            "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "100 KiB", "1.0 MiB", "1.0 GiB", "16.0 EiB",
        ];
        assert_eq!(sizes.map(size), expected);
    }

    #[test]
    fn names_cannot_control_a_terminal() {
        assert_eq!(printable(b"/tmp/\x1b[2Jx\n\xff"), "/tmp/\\u{1b}[2Jx\\u{a}\u{fffd}");
    }
}
