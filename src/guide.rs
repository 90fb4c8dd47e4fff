// Links between pages are references that each page defines at its end for readers of the files. The definitions here come first, so that
// they win: here the same links lead to these modules.
//! [choosing]: crate::guide::choosing
//! [from-pytorch]: crate::guide::from_pytorch
//! [troubleshooting]: crate::guide::troubleshooting
//! [algorithm]: crate::guide::algorithm
//! [results]: crate::guide::results
//! [performance]: crate::guide::performance
//! [testing]: crate::guide::testing
#![doc = "\n"]
#![doc = include_str!("../docs/guide.md")]

macro_rules! pages {
    ($($module:ident: $file:literal, [$($name:literal => $target:literal),*];)*) => {$(
        $(#[doc = concat!("[", $name, "]: crate::guide", $target)])*
        #[doc = "\n"]
        #[doc = include_str!(concat!("../docs/", $file))]
        pub mod $module {}
    )*};
}

pages! {
    choosing: "choosing.md", ["guide" => "", "algorithm" => "::algorithm", "results" => "::results", "performance" => "::performance"];
    from_pytorch: "from-pytorch.md", ["guide" => "", "choosing" => "::choosing", "results" => "::results"];
    troubleshooting: "troubleshooting.md", ["guide" => "", "choosing" => "::choosing", "algorithm" => "::algorithm", "results" => "::results", "performance" => "::performance", "testing" => "::testing"];
    algorithm: "algorithm.md", ["choosing" => "::choosing", "tried" => "::tried"];
    results: "results.md", ["performance" => "::performance", "choosing" => "::choosing", "tried" => "::tried"];
    performance: "performance.md", ["guide" => "", "results" => "::results"];
    testing: "testing.md", ["algorithm" => "::algorithm", "performance" => "::performance"];
    tried: "tried.md", ["algorithm" => "::algorithm", "results" => "::results"];
}
