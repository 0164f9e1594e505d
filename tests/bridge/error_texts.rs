//! An error's text doesn't include the cause that its `source()` returns: whoever prints the
//! error prints the causes too (`src/runtime/error_chain.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Fields, Ident, ItemStruct, Meta, Type, Variant,
    visit::{self, Visit},
};

use crate::support::files;

/// `main` looks for these among the causes, to choose the exit code. A transparent variant would
/// hide them: it passes on the source of what it contains.
const SOUGHT: [&str; 3] = ["ConfigError", "InheritedSocketsError", "MissingPassword"];

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = files::below(&root.join("src"), "rs");
    found.extend(files::below(&root.join("private_postgres/src"), "rs"));
    found
}

#[derive(Default)]
struct ErrorTexts {
    seen: usize,
    wrong: Vec<String>,
}

fn is_cause(attribute: &Attribute) -> bool {
    attribute.path().is_ident("source") || attribute.path().is_ident("from")
}

fn last_name(kind: &Type) -> Option<String> {
    match kind {
        Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        _ => None,
    }
}

impl ErrorTexts {
    fn inspect(&mut self, name: &Ident, attributes: &[Attribute], fields: &Fields) {
        let text = attributes
            .iter()
            .find_map(|attribute| match &attribute.meta {
                Meta::List(list) if list.path.is_ident("error") => Some(&list.tokens),
                _ => None,
            });
        let Some(text) = text else { return };
        self.seen += 1;
        let mut tokens = text.clone().into_iter();
        let format = tokens.next().map(|token| token.to_string());
        let format = format.unwrap_or_default();
        let rest = tokens.map(|token| token.to_string());
        // Without spaces: fields are `.0` and `.source`.
        let arguments = rest.collect::<String>().replace(' ', "");
        for (index, field) in fields.iter().enumerate() {
            let field_name = field.ident.as_ref().map(ToString::to_string);
            if format == "transparent" {
                let hidden = last_name(&field.ty).filter(|kind| SOUGHT.contains(&kind.as_str()));
                self.wrong
                    .extend(hidden.map(|kind| format!("{name} hides {kind}")));
                continue;
            }
            let is_cause =
                field.attrs.iter().any(is_cause) || field_name.as_deref() == Some("source");
            let shown = field_name.unwrap_or_else(|| index.to_string());
            let is_shown = format.contains(&format!("{{{shown}}}"))
                || format.contains(&format!("{{{shown}:"))
                || arguments.contains(&format!(".{shown}"))
                || arguments
                    .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
                    .any(|word| word == shown || word.starts_with(&format!("{shown}.")));
            if is_cause && is_shown {
                self.wrong.push(format!("{name} shows its cause: {format}"));
            }
        }
    }
}

impl<'ast> Visit<'ast> for ErrorTexts {
    fn visit_variant(&mut self, variant: &'ast Variant) {
        self.inspect(&variant.ident, &variant.attrs, &variant.fields);
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.inspect(&item.ident, &item.attrs, &item.fields);
        visit::visit_item_struct(self, item);
    }
}

fn inspected(text: &str) -> ErrorTexts {
    let mut texts = ErrorTexts::default();
    texts.visit_file(&syn::parse_file(text).expect("Rust"));
    texts
}

#[test]
fn no_error_shows_the_cause_that_it_returns() {
    let mut all = ErrorTexts::default();
    for path in files() {
        let found = inspected(&fs::read_to_string(&path).expect("a file"));
        all.seen += found.seen;
        let place = path.display();
        let wrong = found.wrong.iter().map(|wrong| format!("{place}: {wrong}"));
        all.wrong.extend(wrong);
    }
    assert!(all.seen > 100, "only {} errors were found", all.seen);
    assert!(all.wrong.is_empty(), "{:#?}", all.wrong);
}

#[test]
fn each_way_to_show_a_cause_is_found() {
    for bad in [
        r#"#[error("{0}")] A(#[from] B)"#,
        r#"#[error("a: {0:?}")] A(#[source] B)"#,
        r#"#[error("a: {}", describe(.0))] A(#[from] B)"#,
        r#"#[error("a: {source}")] A { source: B }"#,
        r#"#[error("a: {}", source.kind())] A { source: B }"#,
        r#"#[error("a: {}", describe(.why))] A { #[source] why: B }"#,
        "#[error(transparent)] A(#[from] ConfigError)",
    ] {
        assert_eq!(
            inspected(&format!("enum E {{ {bad} }}")).wrong.len(),
            1,
            "{bad}"
        );
    }
    for good in [
        "#[error(transparent)] A(#[from] B)",
        r#"#[error("a")] A(#[from] B)"#,
        r#"#[error("a: {0}")] A(String)"#,
        r#"#[error("{} is bad", name.display())] A { name: N, source: B }"#,
    ] {
        let found = inspected(&format!("enum E {{ {good} }}"));
        assert_eq!((found.seen, found.wrong), (1, Vec::new()), "{good}");
    }
}
