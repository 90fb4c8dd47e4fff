//! The macros that declare structs and constants for both sides.

/// A word of a struct: its name, prefixed by the names of the structs that contain it, and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: String,
    /// `f32`, `i32` or `u32`.
    pub(crate) kind: String,
}

/// Type of a struct's member.
pub(crate) trait Member: Copy {
    /// Returns the type in WGSL.
    fn wgsl() -> String;

    /// Returns the words of a member of this name.
    fn fields(name: &str) -> Vec<Field>;
}

macro_rules! scalar_members {
    ($($type:ident)*) => {$(
        impl Member for $type {
            fn wgsl() -> String {
                stringify!($type).to_owned()
            }

            fn fields(name: &str) -> Vec<Field> {
                vec![Field { name: name.to_owned(), kind: stringify!($type).to_owned() }]
            }
        }
    )*};
}

scalar_members! { f32 i32 u32 }

impl<T: Member, const N: usize> Member for [T; N] {
    fn wgsl() -> String {
        format!("array<{}, {N}>", T::wgsl())
    }

    fn fields(name: &str) -> Vec<Field> {
        (0..N).flat_map(|i| T::fields(&format!("{name}.{i}"))).collect()
    }
}

/// Declaration of a struct for the shaders.
#[derive(Clone, Copy)]
pub(crate) struct Declared {
    pub(crate) name: &'static str,
    /// Names and WGSL types of its members.
    pub(crate) members: fn() -> Vec<(&'static str, String)>,
    /// Words of the struct.
    pub(crate) fields: fn() -> Vec<Field>,
}

/// Declares structs of 4-byte members for both sides.
macro_rules! shared_structs {
    ($($(#[$meta:meta])* $vis:vis struct $Name:ident { $($(#[$member_meta:meta])* $mvis:vis $member:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $Name { $($(#[$member_meta])* $mvis $member: $type,)* }

        impl $Name {
            #[allow(dead_code, reason = "read for structs that a checkpoint or the shaders' text lists")]
            pub(crate) const DECLARED: $crate::layout::Declared = $crate::layout::Declared {
                name: stringify!($Name),
                members: || vec![$((stringify!($member), <$type as $crate::layout::Member>::wgsl())),*],
                fields: || [$(<$type as $crate::layout::Member>::fields(stringify!($member))),*].concat(),
            };
        }

        impl $crate::layout::Member for $Name {
            fn wgsl() -> String {
                stringify!($Name).to_owned()
            }

            fn fields(name: &str) -> Vec<$crate::layout::Field> {
                let mut fields = ($Name::DECLARED.fields)();
                for field in &mut fields {
                    field.name = format!("{name}.{}", field.name);
                }
                fields
            }
        }
    )*};
}
pub(crate) use shared_structs;

/// A number as a WGSL literal. An f32 is as short as possible and has no suffix. WGSL rounds it when it is used.
pub(crate) trait Literal {
    fn wgsl(self) -> String;
}

impl Literal for u32 {
    fn wgsl(self) -> String {
        format!("{self}u")
    }
}

impl Literal for i32 {
    fn wgsl(self) -> String {
        self.to_string()
    }
}

impl Literal for f32 {
    fn wgsl(self) -> String {
        format!("{self:?}")
    }
}

/// Declares constants for both sides. In WGSL their names begin with the prefix.
macro_rules! shared_constants {
    ($prefix:literal $($(#[$meta:meta])* pub const $NAME:ident: $type:ident = $value:expr;)*) => {
        $($(#[$meta])* pub const $NAME: $type = $value;)*

        /// The constants in WGSL.
        pub(crate) fn wgsl() -> String {
            [$(format!("const {}{} = {};\n", $prefix, stringify!($NAME), $crate::layout::Literal::wgsl($NAME))),*].concat()
        }
    };
}
pub(crate) use shared_constants;

/// Declares storage for each regime's own data. A kernel chooses the type of the data.
macro_rules! regime_words {
    ($($(#[$meta:meta])* pub struct $Name:ident($words:literal);)*) => {$(
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
        pub struct $Name(
            /// The words.
            pub [u32; $words],
        );

        impl $Name {
            pub(crate) const WORDS: usize = $words;

            /// The words of the regime's own struct.
            pub(crate) fn of<T: Pod>(own: &T) -> Self {
                let mut words = Self::default();
                *words.own_mut() = *own;
                words
            }

            /// The regime's own struct.
            pub(crate) fn own<T: Pod>(&self) -> &T {
                bytemuck::from_bytes(&bytemuck::bytes_of(&self.0)[..size_of::<T>()])
            }

            /// The regime's own struct.
            pub(crate) fn own_mut<T: Pod>(&mut self) -> &mut T {
                bytemuck::from_bytes_mut(&mut bytemuck::bytes_of_mut(&mut self.0)[..size_of::<T>()])
            }
        }

        impl Member for $Name {
            fn wgsl() -> String {
                stringify!($Name).to_owned()
            }

            fn fields(name: &str) -> Vec<Field> {
                <[u32; $words]>::fields(name)
            }
        }
    )*};
}
pub(crate) use regime_words;
