//! The limits of a server, as flags and keys: one field for each row of the server's own table.

use clap::Args;
use serde::{Deserialize, Serialize};
use tch_flux_server::Options;

use super::units::{Count, Pixels, Size, Time};

macro_rules! limit_args {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $default:expr, least $least:literal $(, within $most:ident $what:literal)?;)*) => {
        /// The limits of a server.
        #[derive(Args, Clone, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[command(next_help_heading = "Limits")]
        pub(super) struct LimitArgs {
            $(
                $(#[$doc])*
                #[arg(long, value_name = $kind::NAME, default_value_t = $kind(Options::default().$name))]
                $name: $kind,
            )*
        }

        impl LimitArgs {
            /// Returns the options with these limits.
            pub(super) fn limit(&self, options: Options) -> Options {
                Options { $($name: self.$name.0,)* ..options }
            }

            /// Returns of each limit whether it can take effect.
            pub(super) fn check(&self) -> Vec<(&'static str, Result<(), String>)> {
                vec![$((
                    stringify!($name),
                    self.$name.at_least($least)
                        $(.and_then(|()| self.$name.within(self.$most, stringify!($most), $what)))?,
                ),)*]
            }
        }
    };
}

tch_flux_server::limits!(limit_args);
