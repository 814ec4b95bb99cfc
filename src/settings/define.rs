//! The macro that makes a group of settings: its rows, and the structs that hold their values.

/// Defines a group: what of it may be said (`Draft`), what is decided in the end (`Group`), and its `ROWS`.
///
/// `settings! { Group, Draft, draft.field, by What, of |request| …; rows }`. The closure finds the group in a request; where it finds
/// none, the rows have no part in requests. See the module's documentation for a row.
macro_rules! settings {
    (
        $(#[doc = $group_doc:literal])+
        $Group:ident $([$($also:ident),*])?, $Draft:ident, draft.$at:ident, by $By:ty, of $get:expr;
        $( $(#[doc = $help:literal])+ $field:ident : $mode:ident $T:ty $(= $default:expr)? => $row:expr; )*
    ) => {
        settings! { @draft $(#[doc = $group_doc])+ $Draft; $( $(#[doc = $help])+ $field: $mode $T; )* }

        $(#[doc = $group_doc])+
        #[allow(rustdoc::broken_intra_doc_links, reason = "help is for people at a terminal, whose brackets are no links")]
        #[derive(Debug, Clone, PartialEq $($(, $also)*)?)]
        #[non_exhaustive]
        pub struct $Group { $( $(#[doc = $help])+ pub $field: settings!(@request $mode $T), )* }

        impl $Draft {
            /// What was said, and the defaults for the rest.
            pub(crate) fn decide(&self, by: &$By) -> $Group {
                let _ = by;
                $Group { $( $field: settings!(@decide $mode $T, self.$field, by, $By $(, $default)?), )* }
            }
        }

        /// The group's settings.
        pub(super) const ROWS: &[crate::settings::Setting] = &[$( {
            const GROUP: fn(&crate::settings::Request) -> Option<&$Group> = $get;
            crate::settings::Setting {
                access: crate::settings::Access {
                    decided: |request| GROUP(request).map_or(Vec::new(), |group| crate::settings::value::ValueSlot::<$T>::public(&group.$field)),
                    json: |request| GROUP(request).map_or(serde_json::Value::Null, |group| crate::settings::value::ValueSlot::<$T>::json(&group.$field)),
                    ..settings!(@access $at.$field $mode $T)
                },
                ..settings!(@row $mode $T, $row, $($help)+)
            }
        } ),*];
    };

    // Settings of which a request keeps only what becomes of them.
    (
        $(#[doc = $group_doc:literal])+
        $Draft:ident, draft.$at:ident;
        $( $(#[doc = $help:literal])+ $field:ident : $mode:ident $T:ty => $row:expr; )*
    ) => {
        settings! { @draft $(#[doc = $group_doc])+ $Draft; $( $(#[doc = $help])+ $field: $mode $T; )* }

        /// The group's settings.
        pub(super) const ROWS: &[crate::settings::Setting] = &[$(
            crate::settings::Setting { access: settings!(@access $at.$field $mode $T), ..settings!(@row $mode $T, $row, $($help)+) }
        ),*];
    };

    (@draft $(#[doc = $group_doc:literal])+ $Draft:ident; $( $(#[doc = $help:literal])+ $field:ident : $mode:ident $T:ty; )*) => {
        $(#[doc = $group_doc])+
        ///
        /// As far as it was said.
        #[allow(rustdoc::broken_intra_doc_links, reason = "help is for people at a terminal, whose brackets are no links")]
        #[derive(Debug, Clone, Default, PartialEq)]
        #[non_exhaustive]
        pub struct $Draft { $( $(#[doc = $help])+ pub $field: settings!(@said $mode $T), )* }
    };

    (@said many $T:ty) => { Vec<$T> };
    (@said $mode:ident $T:ty) => { Option<$T> };
    (@request one $T:ty) => { $T };
    (@request maybe $T:ty) => { Option<$T> };
    (@request many $T:ty) => { Vec<$T> };

    (@decide one $T:ty, $said:expr, $by:ident, $By:ty, $default:expr) => {{
        let default: fn(&$By) -> $T = $default;
        $said.clone().unwrap_or_else(|| default($by))
    }};
    (@decide $mode:ident $T:ty, $said:expr, $by:ident, $By:ty) => { $said.clone() };

    (@access $at:ident.$field:ident $mode:ident $T:ty) => {
        crate::settings::Access {
            read: |draft, values| crate::settings::value::Said::<$T>::read(&mut draft.$at.$field, values),
            given: |draft| crate::settings::value::ValueSlot::<$T>::typed(&draft.$at.$field),
            numbers: |draft| crate::settings::value::ValueSlot::<$T>::numbers(&draft.$at.$field),
            files: |draft| crate::settings::value::Said::<$T>::files(&mut draft.$at.$field),
            ..crate::settings::Setting::IMAGE.access
        }
    };

    (@row $mode:ident $T:ty, $row:expr, $help:literal $($more:literal)*) => {
        crate::settings::Setting {
            help: $help.trim_ascii(),
            kind: <$T as crate::settings::Value>::KIND,
            many: settings!(@many $mode),
            ..$row
        }
    };
    (@many many) => { true };
    (@many $mode:ident) => { false };
}
