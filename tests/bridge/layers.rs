//! The folders in `src/` are layers (`src/lib.rs`), and ARCHITECTURE.md has a map of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, UseTree,
    visit::{self, Visit},
};

use crate::support::files;

/// A module's path from the crate root: `delivery`, `hub`.
type ModulePath = Vec<String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folders from top to bottom. Those in one paragraph are on the same level.
fn layers() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let names = |paragraph: &str| {
        let names = paragraph.lines().filter_map(|line| {
            let name = line
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ");
            name.strip_prefix("mod ")?.strip_suffix(';')
        });
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let layers = text.split("\n\n").map(names);
    layers.filter(|layer| !layer.is_empty()).collect()
}

/// All files of the library, with their modules.
fn modules() -> Vec<(ModulePath, PathBuf)> {
    let source = root().join("src");
    let mut found = Vec::new();
    for path in files::below(&source, "rs") {
        let relative = path
            .strip_prefix(&source)
            .expect("below src")
            .with_extension("");
        let names = relative
            .iter()
            .map(|name| name.to_string_lossy().into_owned());
        let module: ModulePath = names.collect();
        if module != ["main"] && module != ["lib"] {
            found.push((module, path));
        }
    }
    found.sort();
    found
}

/// The modules that a file uses, except in its tests.
struct Uses {
    module: ModulePath,
    found: BTreeSet<ModulePath>,
}

fn is_of_tests(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"))
    };
    attributes.iter().any(is_test)
}

impl Uses {
    /// Records a path if it leads to another module of the crate.
    fn note(&mut self, names: &[String]) {
        let mut module = match names.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self") => self.module.clone(),
            Some("super") => self.module[..self.module.len() - 1].to_vec(),
            _ => return,
        };
        for name in &names[1..] {
            match name.as_str() {
                "super" => drop(module.pop()),
                "self" => {}
                _ => module.push(name.clone()),
            }
        }
        self.found.insert(module);
    }

    fn note_tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => self.note_tree(&path.tree, &with(path.ident.to_string())),
            UseTree::Name(name) => self.note(&with(name.ident.to_string())),
            UseTree::Rename(name) => self.note(&with(name.ident.to_string())),
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => {
                group
                    .items
                    .iter()
                    .for_each(|tree| self.note_tree(tree, before));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Mod(ItemMod { attrs, .. }) if is_of_tests(attrs) => {}
            Item::Use(item) => self.note_tree(&item.tree, &[]),
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.note(&names.collect::<Vec<_>>());
        visit::visit_path(self, path);
    }
}

/// The modules that each module uses.
fn uses() -> Vec<(ModulePath, BTreeSet<ModulePath>)> {
    let uses = modules().into_iter().map(|(module, path)| {
        let text = fs::read_to_string(&path).expect("a file");
        let file = syn::parse_file(&text).expect("Rust");
        let found = BTreeSet::new();
        let mut uses = Uses { module, found };
        uses.visit_file(&file);
        (uses.module, uses.found)
    });
    uses.collect()
}

#[test]
fn no_layer_uses_one_beside_or_above_it() {
    let layers = layers();
    let floor = |name: &String| layers.iter().position(|layer| layer.contains(name));
    let mut upward = Vec::new();
    for (module, used) in uses() {
        let own = floor(&module[0]);
        assert!(own.is_some(), "src/lib.rs doesn't name {}", module[0]);
        for other in used
            .iter()
            .filter(|other| !other.is_empty() && other[0] != module[0])
        {
            if floor(&other[0]).is_some_and(|theirs| Some(theirs) <= own) {
                upward.push(format!("{} uses {}", module.join("::"), other.join("::")));
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

/// Not indirectly either. A file and the folder of the same name count as one module.
#[test]
fn no_two_modules_use_each_other() {
    let all: BTreeSet<ModulePath> = modules()
        .into_iter()
        .filter(|(module, _)| module.len() > 1)
        .map(|(module, _)| module[..2].to_vec())
        .collect();
    let mut graph: BTreeMap<ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
    for (module, used) in uses().into_iter().filter(|(module, _)| module.len() > 1) {
        let own = module[..2].to_vec();
        let others = used
            .iter()
            .filter(|other| other.len() > 1)
            .map(|other| other[..2].to_vec());
        let others = others.filter(|other| all.contains(other) && *other != own);
        graph.entry(own.clone()).or_default().extend(others);
    }
    // A module that uses none of the remaining modules is in no cycle.
    while let Some(done) = graph
        .iter()
        .find(|(_, used)| used.iter().all(|other| !graph.contains_key(other)))
        .map(|(module, _)| module.clone())
    {
        graph.remove(&done);
    }
    assert!(graph.is_empty(), "these use each other: {graph:#?}");
}

/// Types that a file declares, without its tests.
struct Types(Vec<String>);

impl<'ast> Visit<'ast> for Types {
    fn visit_item(&mut self, item: &'ast Item) {
        let ident = match item {
            Item::Mod(ItemMod { attrs, .. }) if is_of_tests(attrs) => return,
            Item::Struct(item) => Some(&item.ident),
            Item::Enum(item) => Some(&item.ident),
            Item::Trait(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        self.0.extend(ident.map(ToString::to_string));
        visit::visit_item(self, item);
    }
}

/// A name that means two things has to be looked up each time.
#[test]
fn every_type_has_a_name_of_its_own() {
    let mut places: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (module, path) in modules() {
        if module.last().is_some_and(|name| name == "tests") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a file");
        let mut types = Types(Vec::new());
        types.visit_file(&syn::parse_file(&text).expect("Rust"));
        for name in types.0 {
            places.entry(name).or_default().push(path.clone());
        }
    }
    places.retain(|_, paths| paths.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

/// One row per folder, in the same order.
#[test]
fn the_code_map_has_every_layer() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, map) = text.split_once("## Code map").expect("a code map");
    let rows = map
        .lines()
        .filter_map(|line| line.strip_prefix("| `src/")?.split_once('`'));
    let mapped: Vec<_> = rows
        .map(|(name, _)| {
            name.trim_end_matches('/')
                .trim_end_matches(".rs")
                .to_owned()
        })
        .filter(|name| name != "main")
        .collect();
    assert_eq!(mapped, layers().concat());
    let entries = fs::read_dir(root().join("src")).expect("src");
    let names = entries.map(|entry| entry.expect("an entry").path().with_extension(""));
    let names = names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let there: BTreeSet<_> = names
        .filter(|name| name != "main" && name != "lib")
        .collect();
    assert_eq!(there, mapped.into_iter().collect());
}
