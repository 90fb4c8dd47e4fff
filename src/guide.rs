// Pages link to each other by reference. Each page defines its references at its end, as file names, for readers of the files.
// In Markdown the first definition counts: the ones below come first and turn the same links into links to modules.
//! [choosing]: crate::guide::choosing
//! [from-pytorch]: crate::guide::from_pytorch
//! [troubleshooting]: crate::guide::troubleshooting
//! [algorithm]: crate::guide::algorithm
//! [results]: crate::guide::results
//! [performance]: crate::guide::performance
//! [testing]: crate::guide::testing
//! [tried]: crate::guide::tried
//! [beyond]: crate::guide::beyond
#![doc = "\n"]
#![doc = include_str!("../docs/guide.md")]

/// A module that documents one page.
macro_rules! page {
    ($module:ident, $file:literal) => {
        #[doc = "[guide]: crate::guide"]
        #[doc = "[choosing]: crate::guide::choosing"]
        #[doc = "[from-pytorch]: crate::guide::from_pytorch"]
        #[doc = "[troubleshooting]: crate::guide::troubleshooting"]
        #[doc = "[algorithm]: crate::guide::algorithm"]
        #[doc = "[results]: crate::guide::results"]
        #[doc = "[performance]: crate::guide::performance"]
        #[doc = "[testing]: crate::guide::testing"]
        #[doc = "[tried]: crate::guide::tried"]
        #[doc = "[beyond]: crate::guide::beyond"]
        #[doc = "\n"]
        #[doc = include_str!(concat!("../docs/", $file))]
        pub mod $module {}
    };
}

page!(choosing, "choosing.md");
page!(from_pytorch, "from-pytorch.md");
page!(troubleshooting, "troubleshooting.md");
page!(algorithm, "algorithm.md");
page!(results, "results.md");
page!(performance, "performance.md");
page!(testing, "testing.md");
page!(tried, "tried.md");
page!(beyond, "beyond.md");
