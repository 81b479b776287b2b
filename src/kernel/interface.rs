//! A stand-in for the prebuilt library at the linking of cells. The library exports a hundred
//! thousand symbols, and the linker reads them all for a cell that calls three; the stand-in holds what the
//! compiler reads (the section with the types and signatures of this package) and no symbol.
//! A cell's calls are resolved when it is loaded, into a process that holds the library already.

use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object, ObjectSection};

use super::toolchain::Toolchain;
use crate::error::{Error, Result};

/// Where `rustc` keeps the description of a crate within a dynamic library.
const SECTION: &str = ".rustc";

/// Writes the stand-in of `library` into `folder`, under the library's own file name.
///
/// # Errors
/// [`Error::Stopped`] when the library holds no description, or with the compiler's message.
pub(super) fn write(toolchain: &Toolchain, library: &Path, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let file = std::fs::File::open(library).map_err(Error::io(library))?;
    // SAFETY: the library was just linked into a folder of our own, where nobody writes.
    let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(library))?;
    let unreadable = |why: String| Error::Stopped(format!("{}: {why}", library.display()));
    let parsed = object::File::parse(&*bytes).map_err(|e| unreadable(e.to_string()))?;
    let section = parsed.section_by_name(SECTION);
    let section = section.ok_or_else(|| unreadable(format!("no section {SECTION}")))?;
    let description = folder.join("description");
    let data = section.data().map_err(|e| unreadable(e.to_string()))?;
    std::fs::write(&description, data).map_err(Error::io(&description))?;
    let source = folder.join("interface.rs");
    let assembly = format!(
        "core::arch::global_asm!({:?}, {:?});\n",
        format!(".section {SECTION},\"\",@progbits"),
        format!(".incbin {:?}", description.display().to_string())
    );
    std::fs::write(&source, assembly).map_err(Error::io(&source))?;
    let name = library.file_name().unwrap_or_default();
    let made = folder.join(name);
    let out = Command::new(&toolchain.rustc)
        .args(["--edition", "2024", "--crate-name", "interface", "--crate-type", "cdylib"])
        .args(["-C", "prefer-dynamic", "-C"])
        .arg(format!("link-arg=-Wl,-soname,{}", name.to_string_lossy()))
        .arg(&source)
        .arg("-o")
        .arg(&made)
        .output()
        .map_err(Error::io(&toolchain.rustc))?;
    if !out.status.success() {
        let message = String::from_utf8_lossy(&out.stderr);
        return Err(unreadable(format!("its stand-in for the linker of cells was not made:\n{message}")));
    }
    for done in [description, source] {
        std::fs::remove_file(&done).map_err(Error::io(&done))?;
    }
    Ok(made)
}
