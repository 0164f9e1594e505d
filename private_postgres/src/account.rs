//! The user that runs the server when we are root, since PostgreSQL refuses to run as
//! root.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt, fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::unistd::{Uid, User};

use super::{ClusterError, PostgresBinaries, Result, cannot};

/// Prints the last of the paths that the user running it can't enter or execute.
const LAST_BARRED: &str =
    r#"barred=; for path do [ -x "$path" ] || barred=$path; done; printf %s "$barred""#;

#[derive(Debug)]
pub(super) struct Account {
    name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// The user that must run the server of `folder`; `None` (the current user) unless we
    /// are root.
    ///
    /// A folder that isn't root's keeps its owner, so that `sudo tidings dev` doesn't
    /// take the data away from the user who runs it without `sudo`.
    pub(super) fn for_folder(folder: &Path) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let metadata = fs::metadata(folder).map_err(cannot("read", folder))?;
        let owner = Some(Uid::from_raw(metadata.uid()))
            .filter(|owner| !owner.is_root())
            .and_then(|owner| User::from_uid(owner).ok().flatten());
        let by_name = |name| User::from_name(name).ok().flatten();
        let user = owner
            .or_else(|| ["postgres", "nobody"].into_iter().find_map(by_name))
            .ok_or(ClusterError::NoAccount)?;
        Ok(Some(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }

    /// Fails unless this user may enter each folder on the path to `folder`.
    pub(super) fn must_reach(&self, folder: &Path) -> Result<()> {
        match self.outermost_barred(folder.ancestors().skip(1))? {
            None => Ok(()),
            Some(folder) => Err(ClusterError::FolderBarred {
                account: self.name.clone(),
                folder,
            }),
        }
    }

    pub(super) fn must_execute(&self, binaries: &PostgresBinaries) -> Result<()> {
        let [initdb, postgres] = ["initdb", "postgres"].map(|name| binaries.program(name));
        match self.outermost_barred([initdb.as_path()].into_iter().chain(postgres.ancestors()))? {
            None => Ok(()),
            Some(path) => Err(ClusterError::BinariesBarred {
                account: self.name.clone(),
                path,
            }),
        }
    }

    /// The last of `paths` that this user may not enter or execute. `paths` go from the
    /// innermost outwards.
    ///
    /// The operating system answers this, because access depends on more than permission
    /// bits.
    fn outermost_barred<'a>(
        &self,
        paths: impl Iterator<Item = &'a Path>,
    ) -> Result<Option<PathBuf>> {
        let shell = Path::new("/bin/sh");
        let output = Command::new(shell)
            .args(["-c", LAST_BARRED, "tidings"])
            .args(paths)
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .stdin(Stdio::null())
            .output()
            .map_err(cannot("run as another user", shell))?;
        let barred = PathBuf::from(OsString::from_vec(output.stdout));
        Ok(Some(barred).filter(|path| !path.as_os_str().is_empty()))
    }
}
