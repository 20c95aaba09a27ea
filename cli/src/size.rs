//! Sizes as people write them: `64K`, `4G`, `1.5T`, binary throughout.

/// The suffixes, each 1024 times the one before, starting at 1024.
const SUFFIXES: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// Reads a size in bytes. A suffix is one of K, M, G, T, P, E in either case,
/// optionally followed by `iB` or `B`; all are powers of 1024.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let malformed = || {
        "a size is a number of bytes, or a number with K, M, G, T, P or E as in 64K or 1.5T"
            .to_owned()
    };
    let too_large = || "the size is larger than 16E - 1 bytes".to_owned();

    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = shift_of(suffix).ok_or_else(malformed)?;
    let (whole, fraction) = match number.split_once('.') {
        None => (number, ""),
        Some((whole, fraction)) if !fraction.is_empty() && shift > 0 => (whole, fraction),
        Some(_) => return Err(malformed()),
    };
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return Err(malformed());
    }
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    // A fraction is rounded down to whole bytes.
    let fraction_bytes = if fraction.is_empty() {
        0
    } else {
        let numerator: u128 = fraction.parse().map_err(|_| malformed())?;
        let places = u32::try_from(fraction.len()).map_err(|_| malformed())?;
        (numerator << shift) / 10u128.pow(places)
    };
    whole
        .checked_mul(1 << shift)
        .and_then(|bytes| bytes.checked_add(fraction_bytes))
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(too_large)
}

/// [`parse`] for sizes that fit 32 bits, such as a chunk or a stripe unit.
pub(crate) fn parse_u32(text: &str) -> Result<u32, String> {
    let bytes = parse(text)?;
    u32::try_from(bytes).map_err(|_| "the size is far too large here".to_owned())
}

fn shift_of(suffix: &str) -> Option<u32> {
    let mut letters = suffix.chars();
    let Some(first) = letters.next() else {
        return Some(0);
    };
    let rest = letters.as_str();
    if first.eq_ignore_ascii_case(&'B') && rest.is_empty() {
        return Some(0);
    }
    let known =
        rest.is_empty() || rest.eq_ignore_ascii_case("iB") || rest.eq_ignore_ascii_case("B");
    let index = SUFFIXES
        .iter()
        .position(|c| c.eq_ignore_ascii_case(&first))?;
    known.then_some(10 * (u32::try_from(index).ok()? + 1))
}

/// Writes a size for people: whole where it is, else with up to two decimals
/// and never rounded up past what there is.
pub(crate) fn format(bytes: u64) -> String {
    let Some((suffix, unit)) = SUFFIXES
        .iter()
        .zip(1u32..)
        .map(|(suffix, power)| (suffix, 1u64 << (10 * power)))
        .take_while(|(_, unit)| bytes >= *unit)
        .last()
    else {
        return bytes.to_string();
    };
    let whole = bytes / unit;
    let rest = u128::from(bytes % unit);
    let (places, scale) = if whole < 10 { (2, 100) } else { (1, 10) };
    let fraction = rest * scale / u128::from(unit);
    if fraction == 0 {
        format!("{whole}{suffix}")
    } else {
        let digits = format!("{fraction:0places$}");
        format!("{whole}.{}{suffix}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_binary_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("64kb", 64 << 10),
            ("4G", 4 << 30),
            ("1.5T", 3 << 39),
            ("0.5K", 512),
            ("16383P", 16383 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "K",
            ".5G",
            "5.G",
            "1.2.3G",
            "1.5",
            "-1",
            "+1",
            "1 G",
            "1Q",
            "1KK",
            "1GiBs",
            "0x10",
            "1e9",
            "16E",
            "18446744073709551616",
            "999999999999999999999999999999999999999999G",
            "1.0000000001G",
            "٣G",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse_u32("4G").is_err());
    }

    #[test]
    fn sizes_print_short_and_never_too_large() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1K"),
            (1536, "1.5K"),
            (64 << 10, "64K"),
            ((4 << 30) - 1, "3.99G"),
            (20 << 30, "20G"),
            ((20 << 30) + (1 << 29), "20.5G"),
            (u64::MAX, "15.9E"),
        ] {
            assert_eq!(format(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn printed_sizes_parse_back_to_at_most_themselves(bytes: u64) {
            let parsed = parse(&format(bytes)).unwrap();
            prop_assert!(parsed <= bytes);
            prop_assert!(bytes - parsed <= bytes / 90);
        }

        #[test]
        fn parsing_is_total(text in "\\PC{0,24}") {
            let _ = parse(&text);
        }
    }
}
