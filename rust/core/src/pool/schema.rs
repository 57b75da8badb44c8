//! The columns of a pool file.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields};

/// Returns the columns of `pool.arrow`, in order.
pub(crate) fn pool_columns() -> Vec<Field> {
    let list = |item: FieldRef| DataType::LargeList(item);
    vec![
        Field::new("id", DataType::LargeUtf8, false),
        Field::new("source", DataType::LargeUtf8, false),
        Field::new("messages", list(item(message_fields())), false),
        Field::new("images", list(item(image_fields())), false),
        Field::new("file", DataType::UInt32, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("length", DataType::UInt64, false),
    ]
}

pub(crate) fn message_fields() -> Fields {
    vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::LargeUtf8, false),
    ]
    .into()
}

pub(crate) fn image_fields() -> Fields {
    vec![
        Field::new("path", DataType::LargeUtf8, true),
        Field::new("bytes", DataType::LargeBinary, true),
        Field::new("offset", DataType::UInt64, true),
        Field::new("length", DataType::UInt64, true),
    ]
    .into()
}

/// An entry of a list, never null.
pub(crate) fn item(fields: Fields) -> FieldRef {
    Arc::new(Field::new("item", DataType::Struct(fields), false))
}
