//! The text formats of metrics, and the choice between them by `Accept`.

use std::{collections::HashMap, fmt::Write, str};

use actix_web::{
    HttpRequest,
    http::header::{ACCEPT, Quality, QualityItem},
};
use mime::Mime;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' own format 0.0.4, which `promtool check metrics` reads.
    Prometheus,
}

impl Exposition {
    /// The format that a request prefers; OpenMetrics if it has no preference.
    pub fn of(request: &HttpRequest) -> Self {
        let accepted: Vec<QualityItem<Mime>> = request
            .headers()
            .get_all(ACCEPT)
            // Invalid items are ignored.
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .filter_map(|item| without_spaces(str::from_utf8(item).ok()?).parse().ok())
            .collect();
        if Self::Prometheus.quality(&accepted) > Self::OpenMetrics.quality(&accepted) {
            Self::Prometheus
        } else {
            Self::OpenMetrics
        }
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts metrics to this format.
    pub fn write(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Prometheus => prometheus(&open_metrics),
        }
    }

    /// The quality that a client gives it: that of the most specific matching item (RFC 9110,
    /// section 12.5.1).
    fn quality(self, accepted: &[QualityItem<Mime>]) -> Quality {
        let meant = accepted
            .iter()
            .filter_map(|item| Some((self.specificity(&item.item)?, item.quality)));
        meant.max().map_or(Quality::ZERO, |(_, quality)| quality)
    }

    /// How specifically a media range matches this format; `None` if it doesn't match.
    fn specificity(self, range: &Mime) -> Option<u8> {
        let (kind, form, versions): (_, _, &[&str]) = match self {
            // A reader of the draft can read 1.0.0 too.
            Self::OpenMetrics => ("application", "openmetrics-text", &["1.0.0", "0.0.1"]),
            Self::Prometheus => ("text", "plain", &["0.0.4"]),
        };
        if range.type_() == mime::STAR {
            return Some(0);
        }
        if range.type_() != kind {
            return None;
        }
        if range.subtype() == mime::STAR {
            return Some(1);
        }
        // With a suffix it is another type.
        if range.subtype() != form || range.suffix().is_some() {
            return None;
        }
        match range.get_param("version") {
            None => Some(2),
            Some(version) => versions.contains(&version.as_str()).then_some(3),
        }
    }
}

/// The same metrics in the format 0.0.4, in which a family has the name of its samples (the
/// family of an OpenMetrics counter lacks `_total`), and which has neither `# UNIT` nor `# EOF`.
/// The registry has no exemplars and no creation times, which this format doesn't support.
fn prometheus(open_metrics: &str) -> String {
    let kinds: HashMap<&str, &str> = open_metrics.lines().filter_map(kind_of).collect();
    let renamed = |name: &str| match kinds.get(name) {
        Some(&"counter") => format!("{name}_total"),
        Some(&"info") => format!("{name}_info"),
        _ => name.to_owned(),
    };
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let written = if let Some((name, help)) = help_of(line) {
            writeln!(text, "# HELP {} {help}", renamed(name))
        } else if let Some((name, kind)) = kind_of(line) {
            let kind = match kind {
                kind @ ("counter" | "gauge" | "histogram" | "summary") => kind,
                "info" | "stateset" => "gauge",
                _ => "untyped",
            };
            writeln!(text, "# TYPE {} {kind}", renamed(name))
        } else if line.starts_with('#') {
            Ok(())
        } else {
            writeln!(text, "{line}")
        };
        debug_assert!(written.is_ok(), "a string takes everything");
    }
    text
}

/// Removes the optional whitespace around parameters, which the parser rejects.
fn without_spaces(item: &str) -> String {
    let parts: Vec<&str> = item.split(';').map(str::trim).collect();
    parts.join(";")
}

/// The family that a line describes, and its kind.
fn kind_of(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("# TYPE ")?.split_once(' ')
}

/// The family that a line describes, and its description.
fn help_of(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("# HELP ")?.split_once(' ')
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn wanted(lines: &[&str]) -> Exposition {
        let request = lines.iter().fold(TestRequest::get(), |request, line| {
            request.append_header((ACCEPT, *line))
        });
        Exposition::of(&request.to_http_request())
    }

    #[test]
    fn clients_that_prefer_plain_text_get_it() {
        for lines in [
            &["text/plain"][..],
            &["Text/Plain ; Version=0.0.4"],
            &["text/plain;version=0.0.4;charset=utf-8;q=0.1"],
            &["text/*"],
            &["text/html", "text/plain"],
            &["text/plain;q=0.5, application/openmetrics-text;q=0.4"],
            &["application/openmetrics-text;q=0, */*;q=0.1"],
            &[
                "application/openmetrics-text;version=1.0.0;q=0.3",
                "text/*;q=0.4",
            ],
            &["\u{e9}", "text/plain"],
            &["\u{e9}, text/plain"],
            &["x;;, text/plain"],
        ] {
            assert_eq!(wanted(lines), Exposition::Prometheus, "{lines:?}");
        }
    }

    #[test]
    fn all_other_clients_get_open_metrics() {
        for lines in [
            &[][..],
            &[""],
            &["*/*"],
            &["application/*"],
            &["application/json"],
            &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            &["text/plain;version=1.0.0"],
            &["text/plain;q=0, */*"],
            &["text/plain;q=0"],
            &["text/plain, application/openmetrics-text"],
            // Prometheus 2 and 3.
            &[
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
               version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ],
            &[
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
               application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
               escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ],
            &["application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5"],
            &["text/plain;q=x"],
        ] {
            assert_eq!(wanted(lines), Exposition::OpenMetrics, "{lines:?}");
        }
    }

    #[test]
    fn families_have_the_names_of_their_samples() {
        let open_metrics = "# HELP a_build Which.\n# TYPE a_build info\na_build_info{v=\"1\"} 1\n\
             # HELP b_seconds Time, and # TYPE b.\n# TYPE b_seconds counter\n# UNIT b_seconds seconds\n\
             b_seconds_total{x=\"# TYPE\"} 2.5\n\
             # HELP c Now.\n# TYPE c gauge\nc +Inf\n\
             # HELP d Long.\n# TYPE d histogram\nd_sum 1.0\nd_count 1\nd_bucket{le=\"+Inf\"} 1\n\
             # HELP e What.\n# TYPE e unknown\ne 1\n# EOF\n";
        let expected = "# HELP a_build_info Which.\n# TYPE a_build_info gauge\na_build_info{v=\"1\"} 1\n\
             # HELP b_seconds_total Time, and # TYPE b.\n# TYPE b_seconds_total counter\n\
             b_seconds_total{x=\"# TYPE\"} 2.5\n\
             # HELP c Now.\n# TYPE c gauge\nc +Inf\n\
             # HELP d Long.\n# TYPE d histogram\nd_sum 1.0\nd_count 1\nd_bucket{le=\"+Inf\"} 1\n\
             # HELP e What.\n# TYPE e untyped\ne 1\n";
        let text = Exposition::Prometheus.write(open_metrics.to_owned());
        assert_eq!(text, expected);
        let same = Exposition::OpenMetrics.write(open_metrics.to_owned());
        assert_eq!(same, open_metrics);
    }
}
