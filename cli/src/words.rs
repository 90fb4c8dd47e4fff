//! Numbers and texts in messages.

use std::path::Path;

/// Largest number of characters of a quoted text.
const QUOTED: usize = 60;

/// Escapes an arbitrary text for one line of a terminal. Control characters and characters that change the direction of
/// writing are escaped.
pub fn escaped(text: &str) -> String {
    let is_safe = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{200b}'..='\u{200f}')
    };
    text.chars().map(|c| if is_safe(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// Returns a text of a file or a command line in quotes, cut off after about sixty characters.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        None => format!("\"{}\"", escaped(text)),
        Some((end, _)) => format!("\"{}…\" ({} bytes)", escaped(&text[..end]), grouped(text.len() as u64)),
    }
}

/// Returns a path for messages.
pub fn path(path: &Path) -> String {
    if path.as_os_str().is_empty() { "\"\"".to_owned() } else { escaped(&path.to_string_lossy()) }
}

/// Formats a number with groups of digits: `1,797`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a count: `1 step`, `1,797 steps`.
pub fn count(number: u64, what: &str) -> String {
    format!("{} {}", grouped(number), plural(number, what))
}

/// Returns the singular for one and the plural otherwise.
pub fn plural(number: u64, what: &str) -> String {
    let ending = match (number, what) {
        (1, _) => "",
        (_, what) if what.ends_with("ss") || what.ends_with("tch") => "es",
        _ => "s",
    };
    format!("{what}{ending}")
}

/// Formats a number with this many significant digits, without an exponent unless it is tiny or huge: `0.188`, `33.1`,
/// `1.2e-7`.
pub fn number(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let scientific = format!("{value:.*e}", digits.saturating_sub(1));
    let exponent: i32 = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    if (-4..6).contains(&exponent) {
        format!("{value:.*}", (digits as i32 - 1 - exponent).max(0) as usize)
    } else {
        scientific
    }
}

/// Formats a time in a suitable unit: `226 µs`, `1.72 s`, `12 min 5 s`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 60.0 => format!("{} min {:.0} s", grouped((s / 60.0) as u64), (s % 60.0).floor()),
        s if s >= 1.0 => format!("{} s", number(s, 3)),
        s if s >= 1e-3 => format!("{} ms", number(1e3 * s, 3)),
        s => format!("{} µs", number(1e6 * s, 3)),
    }
}

/// Formats a number of bytes in a suitable unit: `1.5 GiB`.
pub fn bytes(bytes: f64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let power = ((bytes.max(1.0).log2() / 10.0) as usize).min(units.len() - 1);
    let digits = usize::from(power > 0);
    format!("{:.digits$} {}", bytes / 1024f64.powi(power as i32), units[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_plain_unless_they_are_tiny_or_huge() {
        for (value, words) in [
            (0.18795, "0.188"),
            (2.8192, "2.82"),
            (0.99999, "1.00"),
            (12345.6, "12346"),
            (3.2e-5, "3.20e-5"),
            (1e38, "1.00e38"),
            (0.0, "0"),
            (-0.5, "-0.500"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value, 3), words);
        }
        assert_eq!([0, 999, 1797, 1_234_567].map(grouped), ["0", "999", "1,797", "1,234,567"]);
        assert_eq!([1, 2, 1000].map(|n| count(n, "class")), ["1 class", "2 classes", "1,000 classes"]);
        assert_eq!([count(1, "epoch"), count(0, "epoch"), count(2, "batch")], ["1 epoch", "0 epochs", "2 batches"]);
        let times = [0.0, 2.26e-4, 0.0172, 1.724, 725.6].map(duration);
        assert_eq!(times, ["0 µs", "226 µs", "17.2 ms", "1.72 s", "12 min 5 s"]);
        assert_eq!([12.0, 1536.0, 8e9].map(bytes), ["12 bytes", "1.5 KiB", "7.5 GiB"]);
    }

    #[test]
    fn texts_fit_one_line_and_cannot_command_a_terminal() {
        assert_eq!(quoted("a\u{1b}[31m\nb"), "\"a\\u{1b}[31m\\nb\"");
        let long = quoted(&"7".repeat(200_000_000));
        assert!(long.chars().count() < 100 && long.ends_with("…\" (200,000,000 bytes)"), "{long}");
        assert_eq!(quoted(&"é".repeat(60)).chars().count(), 62);
    }
}
