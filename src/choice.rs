//! Enums whose values have names: those of requests and flags, and of what a picture's file says. Each name is written once.

/// Defines such an enum, with serde's traits and `Display` by the names. `default` behind a name marks the default value.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        pub enum $type:ident {
            $( $(#[doc = $doc:literal])+ $variant:ident = $name:literal $(, $attribute:ident)?; )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $( $(#[doc = $doc])+ $(#[$attribute])? $variant, )+
        }

        impl $type {
            /// Each name, and what it stands for.
            pub const CHOICES: &'static [(&'static str, &'static str)] = &[$( ($name, concat!($($doc),+)) ),+];

            /// Returns the name.
            pub fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => $name, )+
                }
            }

            /// Returns the value of a name.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $( $name => Some(Self::$variant), )+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> std::result::Result<Self, D::Error> {
                let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::named(&name)
                    .ok_or_else(|| serde::de::Error::unknown_variant(&name, &[$($name),+]))
            }
        }
    };
}

pub(crate) use choice;
