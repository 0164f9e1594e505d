//! A page and the code it contains.

use std::{collections::BTreeMap, fs, path::Path};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");

const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes");

/// The beginning of the line that lists the versions a page is run with.
const RUN_WITH: &str = "Run by the tests with ";

/// A page of `docs/recipes`, or another page of the documentation.
pub struct Page {
    pub name: String,
    pub text: String,
}

/// The part of a page that a line belongs to.
enum Place<'a> {
    Prose,
    /// A block without a name.
    Shown,
    /// A block that belongs to a file.
    File(&'a str),
}

impl Page {
    pub fn open(name: &str) -> Self {
        Self::read(Path::new(PAGES), name)
    }

    /// A page of `docs`.
    pub fn of_docs(name: &str) -> Self {
        Self::read(Path::new(DOCS), name)
    }

    fn read(folder: &Path, name: &str) -> Self {
        let path = folder.join(name).with_extension("md");
        Self {
            name: name.to_owned(),
            text: fs::read_to_string(path).expect(name),
        }
    }

    /// The names of all pages.
    pub fn all() -> Vec<String> {
        let pages = fs::read_dir(PAGES).expect("pages");
        let name = |path: &Path| Some(path.file_stem()?.to_str()?.to_owned());
        pages
            .map(|page| name(&page.expect("a page").path()).expect("a name"))
            .collect()
    }

    /// The versions that the page says it is run with.
    pub fn run_with(&self) -> &str {
        let said = |line: &'_ str| line.starts_with(RUN_WITH) && line.ends_with('.');
        let line = self.text.lines().find(|line| said(line));
        let line = line.unwrap_or_else(|| panic!("{} doesn't say with what it is run", self.name));
        &line[RUN_WITH.len()..line.len() - 1]
    }

    /// The files: blocks whose first line has a name after the language. Blocks of the same name
    /// are concatenated.
    pub fn files(&self) -> BTreeMap<&str, String> {
        let mut files = BTreeMap::<&str, String>::new();
        let mut place = Place::Prose;
        for line in self.text.lines() {
            place = match (place, line.strip_prefix("```")) {
                (Place::Prose, Some(info)) => match info.split_once(' ') {
                    Some((_, file)) => Place::File(file),
                    None => Place::Shown,
                },
                (_, Some(_)) => Place::Prose,
                (Place::File(file), None) => {
                    let text = files.entry(file).or_default();
                    text.push_str(line);
                    text.push('\n');
                    Place::File(file)
                }
                (place, None) => place,
            };
        }
        files
    }

    /// The blocks of this language that have no name.
    pub fn shown(&self, language: &str) -> Vec<String> {
        let mut blocks = Vec::new();
        let mut inside = false;
        for line in self.text.lines() {
            match (inside, line.strip_prefix("```")) {
                (false, Some(info)) if info == language => {
                    inside = true;
                    blocks.push(String::new());
                }
                (_, Some(_)) => inside = false,
                (true, None) => {
                    let block = blocks.last_mut().expect("a block");
                    block.push_str(line);
                    block.push('\n');
                }
                (false, None) => {}
            }
        }
        blocks
    }

    /// Writes the files into a folder, which is emptied first.
    pub fn write_to(&self, folder: &Path) {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).expect("a folder");
        for (file, text) in self.files() {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect(file);
        }
    }
}
